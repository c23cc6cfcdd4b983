package policy

import (
	"strings"
	"testing"
)

const account = "123456789012"

func TestDecide(t *testing.T) {
	stream := "arn:aws:kinesis:us-east-1:" + account + ":stream/my-stream"
	f := func(doc, action, resource string, want Decision) {
		t.Helper()
		p, err := Parse([]byte(doc), account)
		if err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
		if got := p.Decide(action, resource); got != want {
			t.Errorf("%s\n%s on %s: got %d, want %d", doc, action, resource, got, want)
		}
	}
	// As the guide prints it.
	guide := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kinesis:PutRecord","kinesis:PutRecords"],"Resource":"arn:aws:kinesis:us-east-1:account-id:stream/my-stream"}]}`
	f(guide, "kinesis:PutRecord", stream, Allow)
	f(guide, "kinesis:putrecords", stream, Allow)
	f(guide, "kinesis:GetRecords", stream, None)
	f(guide, "kinesis:PutRecord", stream+"2", None)
	f(guide, "kinesis:PutRecord", strings.Replace(stream, account, "999999999999", 1), None)
	deny := `{"Statement":[{"Effect":"Allow","Action":"kinesis:*","Resource":"*"},{"Effect":"Deny","Action":"kinesis:Delete*","Resource":"*/prod-?"}]}`
	f(deny, "kinesis:DeleteStream", "arn:x/prod-1", Deny)
	f(deny, "kinesis:DeleteStream", "arn:x/prod-10", Allow)
	f(deny, "kinesis:PutRecord", "arn:x/prod-1", Allow)
	f(deny, "s3:GetObject", "arn:x/prod-1", None)
	f(`{"Statement":{"Effect":"Allow","NotAction":"kinesis:DeleteStream","Resource":"*"}}`, "kinesis:DeleteStream", stream, None)
	f(`{"Statement":{"Effect":"Allow","NotAction":"kinesis:DeleteStream","Resource":"*"}}`, "kinesis:PutRecord", stream, Allow)
	f(`{"Statement":{"Effect":"Allow","Action":"*","NotResource":"*secret*"}}`, "kinesis:PutRecord", "arn:secret-1", None)
	f(`{"Statement":{"Effect":"Allow","Action":"*"}}`, "kinesis:PutRecord", stream, None) // no Resource
}

func TestDecideFor(t *testing.T) {
	f := func(principal, who string, want Decision) {
		t.Helper()
		p, err := Parse([]byte(`{"Statement":{"Effect":"Allow",`+principal+`"Action":"kinesis:GetRecords","Resource":"*"}}`), account)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.DecideFor(who, "kinesis:GetRecords", "arn:x"); got != want {
			t.Errorf("%s %s: got %d, want %d", principal, who, got, want)
		}
	}
	user := "arn:aws:iam::" + account + ":user/a"
	f(`"Principal":"*",`, user, Allow)
	f(`"Principal":{"AWS":"`+account+`"},`, user, Allow)
	f(`"Principal":{"AWS":["arn:aws:iam::`+account+`:root"]},`, user, Allow)
	f(`"Principal":{"AWS":["`+user+`"]},`, user, Allow)
	f(`"Principal":{"AWS":["`+user+`"]},`, user+"b", None)
	f(`"NotPrincipal":{"AWS":["`+user+`"]},`, user, None)
	f(`"NotPrincipal":{"AWS":["`+user+`"]},`, user+"b", Allow)
	f(``, user, None)
}

func TestParseRefuses(t *testing.T) {
	for doc, words := range map[string]string{
		`{`:  "not JSON",
		`{}`: "no Statement",
		`{"Version":"1","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`:                                           "2012-10-17",
		`{"Statement":{"Effect":"Maybe","Action":"*","Resource":"*"}}`:                                                         "Allow or Deny",
		`{"Statement":{"Effect":"Allow","Resource":"*"}}`:                                                                      "Action",
		`{"Statement":{"Effect":"Allow","Action":"PutRecord","Resource":"*"}}`:                                                 "kinesis:PutRecord",
		`{"Statement":{"Effect":"Allow","Action":"*","Resource":"my-stream"}}`:                                                 "ARN",
		`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}}`: "Condition",
		`{"Statement":{"Effect":"Allow","Action":"*","Resources":"*"}}`:                                                        "Resources",
		`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"},"x":"` + strings.Repeat("y", MaxBytes) + `"}`:             "longer",
	} {
		if _, err := Parse([]byte(doc), account); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%.100s: got %v, want words %q", doc, err, words)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "aXbYc")
	f.Add("***a", "aaaa")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 100 || len(s) > 100 {
			return
		}
		if got, want := Match(pattern, s), slow(pattern, s); got != want {
			t.Errorf("%q on %q: got %v, want %v", pattern, s, got, want)
		}
	})
}

// slow is the definition, written down: by dynamic programming.
func slow(pattern, s string) bool {
	row := make([]bool, len(s)+1)
	row[0] = true
	for i := range len(pattern) {
		next := make([]bool, len(s)+1)
		for j := range next {
			switch {
			case pattern[i] == '*':
				next[j] = row[j] || (j > 0 && next[j-1])
			case j > 0:
				next[j] = row[j-1] && (pattern[i] == '?' || pattern[i] == s[j-1])
			}
		}
		row = next
	}
	return row[len(s)]
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":["a:b"],"Resource":"*"}]}`))
	f.Fuzz(func(_ *testing.T, doc []byte) {
		if p, err := Parse(doc, account); err == nil {
			p.Decide("kinesis:PutRecord", "arn:x")
			p.DecideFor("arn:aws:iam::1:user/a", "kinesis:PutRecord", "arn:x")
		}
	})
}
