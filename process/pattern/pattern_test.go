package pattern_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/milepost/milepost/process/pattern"
)

// The instance event of EventBridge's documentation.
const instance = `{
  "version": "0", "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718", "detail-type": "EC2 Instance State-change Notification",
  "source": "aws.ec2", "account": "111122223333", "time": "2017-12-22T18:43:48Z", "region": "us-west-1",
  "resources": ["arn:aws:ec2:us-west-1:123456789012:instance/i-1234567890abcdef0"],
  "detail": {"instance-id": "i-1234567890abcdef0", "state": "terminated", "c-count": 5, "d-count": 3, "x-limit": 301.8,
    "source-ip": "10.0.0.33", "eventName": "", "nothing": null, "FileName": "a/lib/picture.png"}}`

func TestDocumentedOperators(t *testing.T) {
	f := func(pat, doc string, want bool) {
		t.Helper()
		p, err := pattern.Compile([]byte(pat))
		if err != nil {
			t.Errorf("%s: %v", pat, err)
			return
		}
		if got := p.Match([]byte(doc)); got != want {
			t.Errorf("%s\non %s\ngot %t, want %t", pat, doc, got, want)
		}
	}
	yes := func(pat string) { t.Helper(); f(pat, instance, true) }
	no := func(pat string) { t.Helper(); f(pat, instance, false) }

	// Equals, and, or.
	yes(`{"source": ["aws.ec2"]}`)
	yes(`{"source": ["aws.ec2"], "detail-type": ["EC2 Instance State-change Notification"], "detail": {"state": ["running", "terminated"]}}`)
	no(`{"source": ["aws.ec2"], "detail": {"state": ["running"]}}`)
	yes(`{"resources": ["other", "arn:aws:ec2:us-west-1:123456789012:instance/i-1234567890abcdef0"]}`)
	no(`{"detail": ["terminated"]}`)
	no(`{"source": {"x": ["aws.ec2"]}}`)
	// Prefix and suffix.
	yes(`{"time": [{"prefix": "2017-12-22"}], "region": [{"prefix": "us-"}]}`)
	no(`{"time": [{"prefix": "2017-12-23"}]}`)
	yes(`{"detail": {"FileName": [{"suffix": ".png"}]}}`)
	no(`{"detail": {"FileName": [{"suffix": ".PNG"}]}}`)
	yes(`{"detail": {"FileName": [{"suffix": {"equals-ignore-case": ".PNG"}}]}}`)
	yes(`{"source": [{"prefix": {"equals-ignore-case": "AWS."}}]}`)
	no(`{"source": [{"prefix": {"equals-ignore-case": "AWS.EC2."}}]}`)
	no(`{"detail": {"c-count": [{"prefix": "5"}]}}`)
	yes(`{"source": [{"equals-ignore-case": "AWS.ec2"}]}`)
	no(`{"source": [{"equals-ignore-case": "AWS.ec"}]}`)
	// Anything-but.
	yes(`{"detail": {"state": [{"anything-but": "initializing"}]}}`)
	no(`{"detail": {"state": [{"anything-but": "terminated"}]}}`)
	no(`{"detail": {"state": [{"anything-but": ["stopped", "terminated"]}]}}`)
	yes(`{"detail": {"x-limit": [{"anything-but": 123}]}}`)
	no(`{"detail": {"x-limit": [{"anything-but": [100, 301.80, 300]}]}}`)
	yes(`{"detail": {"x-limit": [{"anything-but": "301.8"}]}}`)
	yes(`{"detail": {"state": [{"anything-but": {"prefix": "init"}}]}}`)
	no(`{"detail": {"state": [{"anything-but": {"prefix": "term"}}]}}`)
	no(`{"detail": {"state": [{"anything-but": {"prefix": ["init", "term"]}}]}}`)
	no(`{"detail": {"FileName": [{"anything-but": {"suffix": ".png"}}]}}`)
	yes(`{"detail": {"FileName": [{"anything-but": {"suffix": [".txt", ".rtf"]}}]}}`)
	no(`{"detail": {"state": [{"anything-but": {"equals-ignore-case": "TERMINATED"}}]}}`)
	no(`{"detail": {"state": [{"anything-but": {"equals-ignore-case": ["Initializing", "Terminated"]}}]}}`)
	no(`{"detail": {"FileName": [{"anything-but": {"wildcard": "*/lib/*"}}]}}`)
	yes(`{"detail": {"FileName": [{"anything-but": {"wildcard": ["*/bin/*", "*.jpg"]}}]}}`)
	no(`{"detail": {"missing": [{"anything-but": "x"}]}}`)
	yes(`{"detail": {"nothing": [{"anything-but": "x"}]}}`)
	// Numeric.
	yes(`{"detail": {"c-count": [{"numeric": [">", 0, "<=", 5]}], "d-count": [{"numeric": ["<", 10]}], "x-limit": [{"numeric": ["=", 3.018e2]}]}}`)
	no(`{"detail": {"c-count": [{"numeric": [">", 0, "<", 5]}]}}`)
	no(`{"detail": {"source-ip": [{"numeric": [">", 0]}]}}`)
	yes(`{"detail": {"c-count": [5.0]}}`)
	yes(`{"detail": {"c-count": [50e-1]}}`)
	no(`{"detail": {"c-count": ["5"]}}`)
	f(`{"n": [9007199254740993]}`, `{"n": 9007199254740993}`, true)
	f(`{"n": [9007199254740993]}`, `{"n": 9007199254740992}`, false)
	// IP addresses.
	yes(`{"detail": {"source-ip": [{"cidr": "10.0.0.0/24"}]}}`)
	no(`{"detail": {"source-ip": [{"cidr": "10.0.1.0/24"}]}}`)
	f(`{"ip": [{"cidr": "2001:db8::/32"}]}`, `{"ip": "2001:db8:1::7"}`, true)
	f(`{"ip": [{"cidr": "2001:db8::/32"}]}`, `{"ip": "not an address"}`, false)
	// Exists: leaves only.
	yes(`{"detail": {"state": [{"exists": true}], "nothing": [{"exists": true}], "other": [{"exists": false}]}}`)
	no(`{"detail": {"state": [{"exists": false}]}}`)
	no(`{"detail": [{"exists": true}]}`)
	yes(`{"detail": [{"exists": false}]}`)
	yes(`{"other": {"deep": {"key": [{"exists": false}]}}}`)
	yes(`{"source": {"key": [{"exists": false}]}}`)
	no(`{"other": {"deep": {"key": ["x"], "more": [{"exists": false}]}}}`)
	yes(`{"detail": {"missing": [{"exists": false}, "x"]}}`)
	f(`{"a": [{"exists": true}]}`, `{"a": []}`, false)
	// Null and empty.
	yes(`{"detail": {"nothing": [null], "eventName": [""]}}`)
	no(`{"detail": {"eventName": [null]}}`)
	no(`{"detail": {"missing": [null]}}`)
	f(`{"a": [true]}`, `{"a": true}`, true)
	f(`{"a": [true]}`, `{"a": "true"}`, false)
	// Wildcards.
	yes(`{"detail": {"FileName": [{"wildcard": "a/*.png"}]}}`)
	yes(`{"detail": {"FileName": [{"wildcard": "*lib*p*"}]}}`)
	no(`{"detail": {"FileName": [{"wildcard": "*lib*q*"}]}}`)
	f(`{"a": [{"wildcard": "1\\*2\\\\3*"}]}`, `{"a": "1*2\\3 and so on"}`, true)
	f(`{"a": [{"wildcard": "1\\*2"}]}`, `{"a": "1x2"}`, false)
	f(`{"a": [{"wildcard": "*"}]}`, `{"a": ""}`, true)
	// Or.
	const metric = `{"source": "aws.cloudwatch", "metricType": "MetricType", "namespace": "AWS/EC2", "metricId": 1234}`
	or := `{"source": ["aws.cloudwatch"], "$or": [{"metricName": ["CPUUtilization"]}, {"metricType": ["MetricType"], "namespace": ["AWS/EC2", "AWS/ES"], ` +
		`"$or": [{"metricId": [%s]}, {"spaceId": [1000]}]}, {"scope": ["Service"]}]}`
	f(fmt.Sprintf(or, "1234"), metric, true)
	f(fmt.Sprintf(or, "1235"), metric, false)
	yes(`{"detail": {"$or": [{"c-count": [{"numeric": [">", 100]}]}, {"d-count": [{"numeric": ["<", 10]}]}, {"x-limit": [{"numeric": ["=", 1]}]}]}}`)
	yes(`{"$or": [{"detail": {"state": ["x"]}}, {"detail": {"c-count": [5]}}], "detail": {"d-count": [3]}}`)
	f(`{"$or": {"a": ["x"]}}`, `{"$or": {"a": "x"}}`, true) // a key of that name
	f(`{"$or": [{"prefix": "x"}, {"suffix": "y"}]}`, `{"$or": "xa"}`, true)
	// Arrays.
	f(`{"a": {"b": [1], "c": [2]}}`, `{"a": [{"b": 1, "c": 3}, {"b": 1, "c": 2}]}`, true)
	f(`{"a": {"b": [1], "c": [2]}}`, `{"a": [{"b": 1, "c": 3}, {"b": 0, "c": 2}]}`, false)
	f(`{"a": {"b": [3]}}`, `{"a": [[{"b": [1, [2, 3]]}], 7]}`, true)
	f(`{"a": [{"anything-but": "x"}]}`, `{"a": ["x", "y"]}`, true)
	f(`{"a": [{"anything-but": "x"}]}`, `{"a": ["x"]}`, false)
	// Text as JSON writes it.
	f(`{"k\u00e9y": ["a\"bé\n😀"]}`, `{"kéy": "a\"b\u00e9\n\ud83d\ude00"}`, true)
	f(`{"kéy": ["x"]}`, `{"k\u00e9y": "x"}`, true)
	f(`{"a": [{"equals-ignore-case": "ÉCLAIR straße"}]}`, `{"a": "éclair Straße"}`, true)
	f(`{"a": ["x"]}`, `{"a": "y", "a": "x"}`, true)
	// Not JSON.
	for _, bad := range []string{
		``, `x`, `[]`, `{`, `{"a":"x"`, `{"a":"x"}}`, `{"a":"x",}`, `{"a":"x" "b":1}`, `{"a":"x","b":01}`, `{"a":"x","b":tru}`,
		`{"a":"x","b":"\q"}`, "{\"a\":\"x\",\"b\":\"\n\"}", `{"a":"x","b":[1,]}`, `{"a":"x","b":1.}`, `{"a":"x","b":{"c"}}`,
	} {
		f(`{"a": ["x"]}`, bad, false)
	}
}

func TestErrorsNameThePath(t *testing.T) {
	f := func(pat, want string) {
		t.Helper()
		_, err := pattern.Compile([]byte(pat))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want one with %q", pat, err, want)
		}
	}
	f(``, "not valid JSON at $")
	f(`{"a": [`, "not valid JSON at $.a")
	f(`{"a": ["x"]} x`, "goes on behind its end")
	f(`["a"]`, "must be a JSON object")
	f(`{}`, "$: an empty object")
	f(`{"a": {}}`, "$.a: an empty object")
	f(`{"a": {"b": 5}}`, "$.a.b: must be a list of allowed values, for example [5]")
	f(`{"a": {"b": []}}`, "$.a.b: the list is empty")
	f(`{"a": [["x"]]}`, "$.a[0]: a list within a list")
	f(`{"a": ["x"], "a": ["y"]}`, "$.a: the key occurs twice")
	f(`{"a": [{"begins": "x"}]}`, "$.a[0].begins: unknown operator")
	f(`{"a": [{"prefix": "x", "suffix": "y"}]}`, "$.a[0]: a condition is an object with one key")
	f(`{"a": [{"prefix": 5}]}`, "$.a[0].prefix: must be a string, not a number")
	f(`{"a": [{"prefix": {"equals": "x"}}]}`, "$.a[0].prefix: must be a string or")
	f(`{"a": [{"exists": "yes"}]}`, "$.a[0].exists: must be true or false")
	f(`{"a": [{"cidr": "10.0.0.0/33"}]}`, "$.a[0].cidr: \"10.0.0.0/33\" is not a network")
	f(`{"a": [1, {"wildcard": "a**b"}]}`, "$.a[1].wildcard: \"a**b\" has two wildcards")
	f(`{"a": [{"wildcard": "a\\b"}]}`, "backslash")
	f(`{"a": [{"numeric": [">"]}]}`, "$.a[0].numeric: must be a list")
	f(`{"a": [{"numeric": ["!", 1]}]}`, "$.a[0].numeric[0]: \"!\" is not a comparison")
	f(`{"a": [{"numeric": [">", "1"]}]}`, "$.a[0].numeric[1]: must be a number, not a string")
	f(`{"a": [{"numeric": [">", 5, "<", 5]}]}`, "no number is within")
	f(`{"a": [{"numeric": [">", 5, ">", 6]}]}`, "$.a[0].numeric[2]: a second lower bound")
	f(`{"a": [{"numeric": [">", 5, "=", 6]}]}`, "$.a[0].numeric[2]: \"=\" stands alone")
	f(`{"a": [1e999]}`, "$.a[0]: 1e999 is out of the range")
	f(`{"a": [{"anything-but": []}]}`, "$.a[0].anything-but: the list is empty")
	f(`{"a": [{"anything-but": {"cidr": "10.0.0.0/8"}}]}`, "$.a[0].anything-but.cidr: anything-but takes")
	f(`{"a": [{"anything-but": ["x", {"prefix": "y"}]}]}`, "$.a[0].anything-but[1]: must be a string")
	f(`{"a": [{"anything-but": {"prefix": ["x", 1]}}]}`, "$.a[0].anything-but.prefix[1]: must be a string")
	f(`{"$or": [{"a": ["x"]}]}`, "$.$or: needs at least two")
	f(`{"$or": [{"a": ["x"]}, 5]}`, "$.$or[1]: must be an object")
	f(`{"$or": [{"a": ["x"]}, {"b": 5}]}`, "$.$or[1].b: must be a list")
	f(`{"a": ["`+strings.Repeat("é", 4090)+`"]}`, "pattern has 4101 characters; at most 4096")
	if _, err := pattern.Compile([]byte(`{"a": ["` + strings.Repeat("é", 4096-11) + `"]}`)); err != nil {
		t.Errorf("4,096 characters: %v", err)
	}
}

func TestManyKeysAndValues(t *testing.T) {
	var pat, doc, list strings.Builder
	for i := range 150 {
		if i > 0 {
			pat.WriteByte(',')
			doc.WriteByte(',')
		}
		fmt.Fprintf(&pat, `"k%d":[%d]`, i, i)
		fmt.Fprintf(&doc, `"k%d":%d`, 149-i, 149-i)
		fmt.Fprintf(&list, `,"v%d"`, i)
	}
	p, err := pattern.Compile([]byte(`{` + pat.String() + `,"list":["w"` + list.String() + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Match([]byte(`{"list":"v77",` + doc.String() + `}`)) {
		t.Error("all keys match, the pattern does not")
	}
	if p.Match([]byte(`{"list":"v77",` + strings.Replace(doc.String(), `"k130":130`, `"k130":131`, 1) + `}`)) {
		t.Error("one of 150 keys differs, the pattern matches")
	}
	if p.Match([]byte(`{"list":"v150",` + doc.String() + `}`)) {
		t.Error("none of the list's values, the pattern matches")
	}
}

func TestRecords(t *testing.T) {
	meta := &pattern.Meta{
		PartitionKey: "truck-17", EventSource: "aws:kinesis", EventID: "shardId-000000000000:495", AWSRegion: "eu-central-1",
		ApproximateArrivalTimestamp: time.UnixMilli(1545084650987),
	}
	f := func(data string, want bool, filters ...string) {
		t.Helper()
		a, err := pattern.CompileAny(filters...)
		if err != nil {
			t.Errorf("%q: %v", filters, err)
			return
		}
		if got := a.MatchRecord(meta, []byte(data)); got != want {
			t.Errorf("%q on %q: got %t, want %t", filters, data, got, want)
		}
	}
	const order = `{"record": 12345, "order": {"type": "buy", "stock": "ANYCO", "quantity": 1000}}`
	f(order, true)
	f(order, true, `{"data": {"order": {"type": ["buy"]}}}`)
	f(order, false, `{"data": {"order": {"type": ["sell"]}}}`)
	f(order, true, `{"data": {"order": {"type": ["sell"]}}}`, `{"data": {"record": [12345]}}`)
	f(order, true, `{"partitionKey": [{"prefix": "truck-"}], "data": {"order": {"quantity": [{"numeric": [">=", 1000]}]}}}`)
	f(order, false, `{"partitionKey": ["truck-1"], "data": {"order": {"type": ["buy"]}}}`)
	f(order, true, `{"eventSource": ["aws:kinesis"]}`)
	f(order, true, `{"approximateArrivalTimestamp": [{"numeric": [">=", 1545084650.987, "<", 1545084651]}]}`)
	f(order, true, `{"encryptionType": [{"exists": false}]}`)
	f(order, false, `{"encryptionType": ["KMS"]}`)
	f(order, true, `{"$or": [{"partitionKey": ["x"]}, {"data": {"record": [12345]}}]}`)
	f(order, true, `{"data": {"missing": [{"exists": false}]}}`)
	// A JSON pattern and data that is not JSON do not go together, nor the other way round; without the key data is not looked at.
	for _, text := range []string{"", "plain", `{"record": 12345`, `{"record": 12345}}`, "\xff\xfe", `"record"`, "12345"} {
		f(text, false, `{"data": {"record": [12345]}}`)
		f(text, false, `{"data": {"missing": [{"exists": false}]}}`)
		f(text, true, `{"partitionKey": ["truck-17"]}`)
	}
	f("plain text", true, `{"data": ["plain text"]}`)
	f("plain text", true, `{"data": [{"suffix": "text"}]}`)
	f("12345", true, `{"data": ["12345"]}`)
	f(order, false, `{"data": [{"prefix": "{"}]}`)
	f(`{"cut`, true, `{"data": [{"prefix": "{"}]}`)
	f(`[{"a": 1}, {"a": 2}]`, true, `{"data": {"a": [2]}}`)

	bad := func(want string, filters ...string) {
		t.Helper()
		_, err := pattern.CompileAny(filters...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", filters, err, want)
		}
	}
	bad("filter 2: $.speed: a record has no such key; what is in the data goes under data", `{"data": {"a": [1]}}`, `{"speed": [1]}`)
	bad("without kinesis around", `{"kinesis": {"partitionKey": ["a"]}}`)
	bad("filter 1: $.partitionKey: must be a list", `{"partitionKey": {"a": [1]}}`)
	bad("11 filters", strings.Split(strings.Repeat(`{"data":{"a":[1]}};`, 11), ";")[:11]...)
}
