package rule

// didYouMean returns "; did you mean X?" for the nearest of known, or "" if none is near.
func didYouMean(word string, known []string) string {
	if best, ok := nearest(word, known); ok {
		return "; did you mean " + best + "?"
	}
	return ""
}

func nearest(word string, known []string) (string, bool) {
	best, d := "", max(2, len(word)/3)+1
	for _, k := range known {
		if x := distance(word, k, d); x < d {
			best, d = k, x
		}
	}
	return best, best != ""
}

// distance is Levenshtein's, or limit if it is not below.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || len(a) > 256 || len(b) > 256 {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return min(row[len(b)], limit)
}
