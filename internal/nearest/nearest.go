// Package nearest finds the word that somebody meant.
package nearest

// Word returns the known word that is the fewest edits away, the first of equals, or "" when none is near: a third of the word, and at
// least two edits. An edit inserts, removes or replaces a byte, or swaps two neighbours (optimal string alignment distance).
func Word(word string, known []string) string {
	best, at := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := distance(word, k, at); d < at {
			best, at = k, d
		}
	}
	return best
}

// Hint returns "; did you mean X?" for the nearest of known, or "" if none is near.
func Hint(word string, known []string) string {
	if best := Word(word, known); best != "" {
		return "; did you mean " + best + "?"
	}
	return ""
}

// distance returns limit if it is not below. Words of more than 256 bytes, which nobody typed, are near nothing.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || len(a) > 256 || len(b) > 256 {
		return limit
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return min(prev[len(b)], limit)
}
