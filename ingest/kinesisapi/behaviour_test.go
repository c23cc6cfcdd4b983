package kinesisapi

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/milepost/milepost/ingest/kinesisapi/wire"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/stream/seglog"
)

const zero = "shardId-000000000000"

type describedStream struct {
	StreamDescription struct {
		StreamStatus string
		Shards       []struct {
			ShardId             string
			SequenceNumberRange struct{ StartingSequenceNumber, EndingSequenceNumber string }
		}
		HasMoreShards bool
	}
}

func (td *testDoor) status(t testing.TB, name string) string {
	t.Helper()
	var out describedStream
	td.must(t, "DescribeStream", `{"StreamName":"`+name+`"}`, &out)
	return out.StreamDescription.StreamStatus
}

func (td *testDoor) putOne(t testing.TB, name, key, data string) (seq string) {
	t.Helper()
	var out struct{ SequenceNumber string }
	body := wire.JSON.Marshal(nil, struct {
		StreamName, PartitionKey string
		Data                     []byte
	}{name, key, []byte(data)})
	td.must(t, "PutRecord", string(body), &out)
	return out.SequenceNumber
}

func (td *testDoor) iterator(t testing.TB, name, shard, rest string) string {
	t.Helper()
	var out struct{ ShardIterator string }
	td.must(t, "GetShardIterator", `{"StreamName":"`+name+`","ShardId":"`+shard+`",`+rest+`}`, &out)
	return out.ShardIterator
}

type gotRecords struct {
	Records []struct {
		Data           []byte
		PartitionKey   string
		SequenceNumber string
	}
	NextShardIterator  string
	MillisBehindLatest int64
	ChildShards        []struct{ ShardId string }
}

func (td *testDoor) get(t testing.TB, iterator, rest string) (out gotRecords) {
	t.Helper()
	td.must(t, "GetRecords", `{"ShardIterator":"`+iterator+`"`+rest+`}`, &out)
	return out
}

func (g gotRecords) data() string {
	var all []string
	for _, r := range g.Records {
		all = append(all, string(r.Data))
	}
	return strings.Join(all, " ")
}

const horizon = `"ShardIteratorType":"TRIM_HORIZON"`

func TestTransitionsTakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.Transition = 0 }) // the default
		is := func(want string) {
			t.Helper()
			if got := d.status(t, "s"); got != want {
				t.Errorf("at %v: %s, want %s", time.Now().UnixMilli(), got, want)
			}
		}
		pass := func() { time.Sleep(501 * time.Millisecond); synctest.Wait() }
		d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":2}`, nil)
		is("CREATING")
		d.refused(t, "PutRecord", `{"StreamName":"s","PartitionKey":"k","Data":""}`, typeNotFound, "Stream s under account 000000000000 not found.")
		d.refused(t, "SplitShard", `{"StreamName":"s","ShardToSplit":"`+zero+`","NewStartingHashKey":"1000"}`, typeNotFound, "not found")
		pass()
		is("ACTIVE")
		d.must(t, "UpdateShardCount", `{"StreamName":"s","TargetShardCount":4,"ScalingType":"UNIFORM_SCALING"}`, nil)
		synctest.Wait() // the keeper reshards at once
		is("UPDATING")
		d.refused(t, "MergeShards", `{"StreamName":"s","ShardToMerge":"`+zero+`","AdjacentShardToMerge":"shardId-000000000001"}`, typeInvalid, "eligible for merging")
		d.refused(t, "SplitShard", `{"StreamName":"s","ShardToSplit":"shardId-000000000002","NewStartingHashKey":"1000"}`, typeInUse, "not ACTIVE, instead in state UPDATING")
		d.putOne(t, "s", "k", "while updating")
		pass()
		is("ACTIVE")
		arn := "arn:aws:kinesis:us-east-1:000000000000:stream/s"
		d.must(t, "RegisterStreamConsumer", `{"StreamARN":"`+arn+`","ConsumerName":"c"}`, nil)
		var c struct {
			ConsumerDescription struct{ ConsumerStatus string }
		}
		d.must(t, "DescribeStreamConsumer", `{"StreamARN":"`+arn+`","ConsumerName":"c"}`, &c)
		if c.ConsumerDescription.ConsumerStatus != "CREATING" {
			t.Error(c)
		}
		pass()
		d.must(t, "DescribeStreamConsumer", `{"StreamARN":"`+arn+`","ConsumerName":"c"}`, &c)
		if c.ConsumerDescription.ConsumerStatus != "ACTIVE" {
			t.Error(c)
		}
		d.must(t, "DeregisterStreamConsumer", `{"StreamARN":"`+arn+`","ConsumerName":"c"}`, nil)
		pass()
		d.refused(t, "DescribeStreamConsumer", `{"StreamARN":"`+arn+`","ConsumerName":"c"}`, typeNotFound, "Consumer c")
		d.must(t, "DeleteStream", `{"StreamName":"s"}`, nil)
		is("DELETING")
		pass()
		d.refused(t, "DescribeStream", `{"StreamName":"s"}`, typeNotFound, "Stream s under account 000000000000 not found.")
		d.close(t)()
	})
}

// TestRestart opens the door again at every stage, on the same files and on what a power failure leaves of them.
func TestRestart(t *testing.T) {
	fsys := vfs.NewCrashable()
	slow := func(c *Config) { c.Transition = time.Hour }
	d := openDoor(t, fsys, nil)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1,"Tags":{"a":"b"}}`, nil)
	seq := d.putOne(t, "s", "k", "one")
	it := d.iterator(t, "s", zero, horizon)
	d.close(t)()
	d = openDoor(t, fsys, slow)
	if got := d.get(t, it, ""); got.data() != "one" || got.Records[0].SequenceNumber != seq {
		t.Errorf("an iterator from before: %+v", got)
	}
	d.must(t, "CreateStream", `{"StreamName":"new","ShardCount":3}`, nil)
	d.must(t, "UpdateShardCount", `{"StreamName":"s","TargetShardCount":2,"ScalingType":"UNIFORM_SCALING"}`, nil)
	crashed := fsys.CrashClone(vfs.CrashCloneCfg{})
	d.close(t)()
	d = openDoor(t, crashed, slow)
	for name, want := range map[string]string{"s": "UPDATING", "new": "CREATING"} {
		if got := d.status(t, name); got != want {
			t.Errorf("after the crash %s is %s, want %s", name, got, want)
		}
	}
	var tags struct{ Tags []struct{ Key, Value string } }
	d.must(t, "ListTagsForStream", `{"StreamName":"s"}`, &tags)
	if len(tags.Tags) != 1 {
		t.Error(tags)
	}
	if got := d.get(t, it, ""); got.data() != "one" {
		t.Errorf("an iterator from before the crash: %+v", got)
	}
	d.must(t, "DeleteStream", `{"StreamName":"s"}`, nil)
	d.close(t)()
	d = openDoor(t, crashed, slow)
	if got := d.status(t, "s"); got != "DELETING" {
		t.Errorf("got %s", got)
	}
}

// TestCreateNotWrittenDown: the log of a stream was made, and the metadata that says so could not be written. The stream stays
// CREATING for its hour and is whole afterwards.
func TestCreateNotWrittenDown(t *testing.T) {
	writes := 0
	disk := errorfs.Wrap(vfs.NewCrashable(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind != errorfs.OpCreate || !strings.HasSuffix(op.Path, metaFile+".new") {
			return nil
		}
		if writes++; writes == 3 { // at the start; CREATING; ACTIVE
			return syscall.ENOSPC
		}
		return nil
	}))
	d := openDoor(t, disk, nil)
	if status, body := d.ask(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`); status < 500 {
		t.Fatalf("created on a full disk: %d %s", status, body)
	}
	if got := d.status(t, "s"); got != "CREATING" {
		t.Errorf("got %s, want CREATING", got)
	}
	d.tend(t.Context(), time.Now().Add(2*time.Hour))
	if got := d.status(t, "s"); got != "ACTIVE" {
		t.Errorf("got %s, want ACTIVE", got)
	}
	d.must(t, "PutRecord", `{"StreamName":"s","PartitionKey":"k","Data":"AAA="}`, nil)
}

func TestDamagedMetadataIsRefused(t *testing.T) {
	fsys := vfs.NewCrashable()
	d := openDoor(t, fsys, nil)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
	d.close(t)()
	if err := writeFile(fsys, "kinesis", metaFile, []byte(metaHeader+"00000000\n{}")); err != nil {
		t.Fatal(err)
	}
	store, err := seglog.Open(seglog.Config{Dir: "log", FS: fsys, ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := New(Config{Store: store, Dir: "kinesis", FS: fsys}); err == nil || !strings.Contains(err.Error(), "wrong checksum") {
		t.Errorf("got %v", err)
	}
}

func TestBuiltInStreams(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) {
		for _, name := range []string{"readings", "hidden"} {
			if _, err := c.Store.Create(t.Context(), name, seglog.StreamConfig{Shards: 2, Retention: 90 * time.Minute}); err != nil {
				t.Fatal(err)
			}
		}
		c.Reserved = []string{"readings"}
	})
	var list struct{ StreamNames []string }
	d.must(t, "ListStreams", `{}`, &list)
	if fmt.Sprint(list.StreamNames) != "[readings]" {
		t.Errorf("streams: %v", list.StreamNames)
	}
	d.putOne(t, "readings", "truck-1", "{}")
	log, err := d.store.Stream("readings")
	if err != nil || log.Stats().Records != 1 {
		t.Error("the record is not in the log:", err)
	}
	d.refused(t, "DeleteStream", `{"StreamName":"readings"}`, typeInUse, "cannot be deleted here")
	d.refused(t, "CreateStream", `{"StreamName":"hidden","ShardCount":1}`, typeInUse, "already exists")
	d.refused(t, "PutRecord", `{"StreamName":"hidden","PartitionKey":"k","Data":""}`, typeNotFound, "not found")
}

func TestIteratorTypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openDoor(t, vfs.NewCrashable(), nil)
		d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
		latest := d.iterator(t, "s", zero, `"ShardIteratorType":"LATEST"`)
		var seqs []string
		var times []time.Time
		for _, data := range []string{"a", "b", "c"} {
			time.Sleep(10 * time.Second)
			times = append(times, time.Now())
			seqs = append(seqs, d.putOne(t, "s", "k", data))
		}
		var desc describedStream
		d.must(t, "DescribeStream", `{"StreamName":"s"}`, &desc)
		start := desc.StreamDescription.Shards[0].SequenceNumberRange.StartingSequenceNumber
		f := func(rest, want string) {
			t.Helper()
			if got := d.get(t, d.iterator(t, "s", zero, rest), "").data(); got != want {
				t.Errorf("%s: got %q, want %q", rest, got, want)
			}
		}
		at := func(t time.Time) string {
			return fmt.Sprintf(`"ShardIteratorType":"AT_TIMESTAMP","Timestamp":%d.%03d`, t.Unix(), t.UnixMilli()%1000)
		}
		seq := func(kind, s string) string {
			return `"ShardIteratorType":"` + kind + `_SEQUENCE_NUMBER","StartingSequenceNumber":"` + s + `"`
		}
		f(horizon, "a b c")
		f(`"ShardIteratorType":"LATEST"`, "")
		f(seq("AT", seqs[1]), "b c")
		f(seq("AFTER", seqs[1]), "c")
		f(seq("AT", start), "a b c")
		f(seq("AFTER", start), "a b c")
		f(at(times[1]), "b c")
		f(at(times[1].Add(time.Second)), "c")
		f(at(times[0].Add(-time.Hour)), "a b c")
		if got := d.get(t, latest, "").data(); got != "a b c" {
			t.Errorf("LATEST from before: got %q", got)
		}
		one := d.get(t, d.iterator(t, "s", zero, horizon), `,"Limit":1`)
		if one.data() != "a" || one.MillisBehindLatest != 20_000 {
			t.Errorf("first record: %+v", one)
		}
		again := d.get(t, one.NextShardIterator, "")
		if again.data() != "b c" || again.MillisBehindLatest != 0 {
			t.Errorf("the rest: %+v", again)
		}
		empty := d.get(t, again.NextShardIterator, "")
		if len(empty.Records) != 0 || empty.NextShardIterator == again.NextShardIterator {
			t.Errorf("at the tip: %+v", empty)
		}
		d.refused(t, "GetShardIterator", `{"StreamName":"s","ShardId":"`+zero+`",`+at(time.Now().Add(time.Minute))+`}`, typeInvalid, "timestampInMillis parameter cannot be greater")
		d.refused(t, "GetShardIterator", `{"StreamName":"s","ShardId":"`+zero+`",`+horizon+`,"StartingSequenceNumber":"1"}`, typeInvalid, "and also a StartingSequenceNumber")
		d.refused(t, "GetShardIterator", `{"StreamName":"s","ShardId":"`+zero+`","ShardIteratorType":"AT_SEQUENCE_NUMBER"}`, typeInvalid, "and no StartingSequenceNumber")
		d.refused(t, "GetShardIterator", `{"StreamName":"s","ShardId":"`+zero+`",`+seq("AT", "123")+`}`, typeInvalid, "is invalid.")
		d.refused(t, "GetShardIterator", `{"StreamName":"s","ShardId":"shardId-000000000007",`+horizon+`}`, typeNotFound, "does not exist")
		d.refused(t, "GetRecords", `{"ShardIterator":"AAAA"}`, typeInvalid, "Invalid ShardIterator.")
		d.refused(t, "GetRecords", `{"ShardIterator":"`+latest+`","DryRun":true}`, "DryRunOperationException", "would have succeeded")
		made := time.Now()
		old := d.iterator(t, "s", zero, horizon)
		time.Sleep(5 * time.Minute)
		d.get(t, old, "")
		time.Sleep(time.Second)
		d.refused(t, "GetRecords", `{"ShardIterator":"`+old+`"}`, "ExpiredIteratorException",
			"The iterator was created at time "+amazonTime(made)+" while right now it is "+amazonTime(time.Now())+" which is further in the future than the tolerated delay of 300000 milliseconds.")
		// A stream of the same name is another stream.
		d.must(t, "DeleteStream", `{"StreamName":"s"}`, nil)
		time.Sleep(time.Second)
		d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":1}`, nil)
		d.refused(t, "GetRecords", `{"ShardIterator":"`+d.iterator(t, "s", zero, horizon)[:8]+`"}`, typeInvalid, "Invalid")
		d.refused(t, "GetShardIterator", `{"StreamName":"s","ShardId":"`+zero+`",`+seq("AT", seqs[0])+`}`, typeInvalid, "because it did not come from this stream")
		d.close(t)()
	})
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.Throttle = ThrottleAWS })
		d.must(t, "CreateStream", `{"StreamName":"bench","ShardCount":1}`, nil)
		var out struct {
			FailedRecordCount int
			Records           []struct{ ErrorCode, ErrorMessage, SequenceNumber string }
		}
		body := string(putRecordsBody(400, 10))
		d.must(t, "PutRecords", body, &out)
		d.must(t, "PutRecords", body, &out)
		if out.FailedRecordCount != 0 {
			t.Errorf("800 records: %d failed", out.FailedRecordCount)
		}
		out.Records = nil
		d.must(t, "PutRecords", body, &out)
		if out.FailedRecordCount != 200 {
			t.Errorf("1,200 records in a moment: %d failed, want 200", out.FailedRecordCount)
		}
		last := out.Records[399]
		if last.ErrorCode != typeThroughput || last.SequenceNumber != "" || last.ErrorMessage != "Rate exceeded for shard "+zero+" in stream bench under account 000000000000." {
			t.Errorf("a refused record: %+v", last)
		}
		d.refused(t, "PutRecord", `{"StreamName":"bench","PartitionKey":"k","Data":""}`, typeThroughput, "Rate exceeded for shard")
		time.Sleep(time.Second)
		d.putOne(t, "bench", "k", strings.Repeat("x", 1<<20-1))
		d.refused(t, "PutRecord", `{"StreamName":"bench","PartitionKey":"k","Data":"AAAA"}`, typeThroughput, "Rate exceeded")
		it := d.iterator(t, "bench", zero, horizon)
		for range 5 {
			d.get(t, it, `,"Limit":1`)
		}
		d.refused(t, "GetRecords", `{"ShardIterator":"`+it+`"}`, typeThroughput, "Rate exceeded for Shard - 000000000000/bench/"+zero)
		d.must(t, "DescribeLimits", `{}`, nil)
		d.refused(t, "DescribeLimits", `{}`, typeLimit, "Rate exceeded")
		d.close(t)()
	})
}

func TestBucketTakesALargeRecord(t *testing.T) {
	var b bucket
	now := time.Unix(0, 0)
	if !b.take(10<<20, 1<<20, 1<<20, now) {
		t.Error("a full bucket refuses a record of 10 MiB")
	}
	if b.take(1, 1<<20, 1<<20, now.Add(9*time.Second)) {
		t.Error("it is not drained")
	}
	if !b.take(1, 1<<20, 1<<20, now.Add(10*time.Second)) {
		t.Error("it is not filled again after 10 s")
	}
}

func TestOnDemandScales(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openDoor(t, vfs.NewCrashable(), func(c *Config) { c.ScaleEvery = time.Second })
		d.must(t, "CreateStream", `{"StreamName":"bench","StreamModeDetails":{"StreamMode":"ON_DEMAND"}}`, nil)
		open := func() int {
			log, err := d.store.Stream("bench")
			if err != nil {
				t.Fatal(err)
			}
			return log.Config().Shards
		}
		if open() != 4 {
			t.Errorf("it begins with %d shards", open())
		}
		body := strings.ReplaceAll(string(putRecordsBody(500, 10)), `"PartitionKey"`, `"ExplicitHashKey":"0","PartitionKey"`)
		for range 4 {
			d.must(t, "PutRecords", body, nil)
			d.must(t, "PutRecords", body, nil)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if open() <= 4 {
			t.Errorf("a hot shard was not split: %d shards", open())
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if open() != 4 {
			t.Errorf("idle for 10 minutes: %d shards", open())
		}
		d.close(t)()
	})
}

func TestAccess(t *testing.T) {
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kinesis:PutRecord","kinesis:PutRecords","kinesis:CreateStream"],"Resource":"arn:aws:kinesis:us-east-1:account-id:stream/my-stream"}]}`
	d := openDoor(t, vfs.NewCrashable(), func(c *Config) {
		c.AccessKeys = []AccessKey{{ID: "producer", Secret: "p", Policy: policy}, {ID: "admin", Secret: "a"}}
	})
	url := d.listen(t)
	producer, admin, thief := sdk(t, url, "producer", "p"), sdk(t, url, "admin", "a"), sdk(t, url, "producer", "guessed")
	testAccess(t, producer, admin, thief)
	if code, body := d.ask(t, "ListStreams", `{}`); code != http.StatusBadRequest || !strings.Contains(body, "MissingAuthenticationTokenException") {
		t.Errorf("unsigned: %d %s", code, body)
	}
}

func TestValidation(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":3}`, nil)
	d.refused(t, "CreateStream", `{"StreamName":"s","ShardCount":3}`, typeInUse, "Stream s under account 000000000000 already exists.")
	d.refused(t, "CreateStream", `{"StreamName":";","ShardCount":1}`, typeValidation, "Value ';' at 'streamName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+")
	d.refused(t, "CreateStream", `{"StreamName":"x","ShardCount":20000}`, typeLimit, "This request would exceed the shard limit for the account 000000000000 in us-east-1. Current shard count for the account: 3.")
	d.refused(t, "DescribeStream", `{}`, typeInvalid, "StreamName or StreamARN")
	d.refused(t, "DescribeStream", `{"StreamARN":"arn:aws:kinesis:us-east-1:999999999999:stream/s"}`, typeNotFound, "not found")
	d.refused(t, "DescribeStream", `{"StreamName":"t","StreamARN":"arn:aws:kinesis:us-east-1:000000000000:stream/s"}`, typeInvalid, "do not name the same stream")
	d.refused(t, "DescribeStream", `{"StreamName":1}`, typeSerialization, "can not be converted to an String")
	d.refused(t, "PutRecords", `{"StreamName":"s","Records":[]}`, typeValidation, "Value '[]' at 'records' failed to satisfy constraint: Member must have length greater than or equal to 1")
	d.refused(t, "PutRecords", `{"StreamName":"s","Records":[{"Data":"","PartitionKey":""}]}`, typeValidation, "Value '' at 'records.1.member.partitionKey'")
	d.refused(t, "PutRecord", `{"StreamName":"s","PartitionKey":"k","Data":"","ExplicitHashKey":"340282366920938463463374607431768211456"}`, typeInvalid, "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was 340282366920938463463374607431768211456")
	d.refused(t, "PutRecord", `{"StreamName":"s","PartitionKey":"k","Data":"","SequenceNumberForOrdering":"1"}`, typeInvalid, "ExclusiveMinimumSequenceNumber 1 used in PutRecord on stream s under account 000000000000 is invalid.")
	d.refused(t, "PutRecord", `{"StreamName":"s","PartitionKey":"k","Data":"","DryRun":true}`, "DryRunOperationException", "")
	d.refused(t, "IncreaseStreamRetentionPeriod", `{"StreamName":"s","RetentionPeriodHours":9000}`, typeInvalid, "Maximum allowed retention period is 8760 hours. Requested retention period (9000 hours) is too long.")
	d.refused(t, "DecreaseStreamRetentionPeriod", `{"StreamName":"s","RetentionPeriodHours":25}`, typeInvalid, "Use IncreaseRetentionPeriod API.")
	d.refused(t, "SplitShard", `{"StreamName":"s","ShardToSplit":"`+zero+`","NewStartingHashKey":"1"}`, typeInvalid, "is not both greater than one plus the shard's StartingHashKey 0 and less than the shard's EndingHashKey 113427455640312821154458202477256070484.")
	d.refused(t, "SplitShard", `{"StreamName":"s","ShardToSplit":"nonsense","NewStartingHashKey":"1"}`, typeNotFound, "Could not find shard nonsense in stream s under account 000000000000.")
	d.refused(t, "MergeShards", `{"StreamName":"s","ShardToMerge":"`+zero+`","AdjacentShardToMerge":"shardId-000000000002"}`, typeInvalid, "are not an adjacent pair of shards eligible for merging")
	d.refused(t, "UpdateShardCount", `{"StreamName":"s","TargetShardCount":7,"ScalingType":"UNIFORM_SCALING"}`, typeInvalid, "cannot scale up over double")
	d.refused(t, "UpdateShardCount", `{"StreamName":"s","TargetShardCount":1,"ScalingType":"UNIFORM_SCALING"}`, typeInvalid, "cannot scale down below half")
	d.refused(t, "AddTagsToStream", `{"StreamName":"s","Tags":{"a!":"b"}}`, typeInvalid, "Some tags contain invalid characters")
	d.refused(t, "ListShards", `{"NextToken":"x"}`, typeInvalid, "NextToken is invalid.")
	d.refused(t, "SubscribeToShard", `{"ConsumerARN":"arn:aws:kinesis:us-east-1:000000000000:stream/s/consumer/c:1","ShardId":"`+zero+`","StartingPosition":{"Type":"LATEST"}}`, typeNotFound, "Consumer arn:aws")
	big := strings.Repeat("A", 4<<20)
	d.refused(t, "PutRecord", `{"StreamName":"s","PartitionKey":"k","Data":"`+big+`"}`, typeValidation, "less than or equal to 1048576")
}

func TestPages(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	d.must(t, "CreateStream", `{"StreamName":"s","ShardCount":7}`, nil)
	var ids []string
	for ask := `{"StreamName":"s","MaxResults":3}`; ask != ""; {
		var out struct {
			Shards    []struct{ ShardId string }
			NextToken string
		}
		d.must(t, "ListShards", ask, &out)
		for _, s := range out.Shards {
			ids = append(ids, s.ShardId)
		}
		if ask = ""; out.NextToken != "" {
			ask = `{"MaxResults":3,"NextToken":"` + out.NextToken + `"}`
			d.refused(t, "ListShards", `{"StreamName":"s","NextToken":"`+out.NextToken+`"}`, typeInvalid, "NextToken and StreamName cannot be provided together.")
			d.refused(t, "ListStreams", `{"NextToken":"`+out.NextToken+`"}`, typeInvalid, "NextToken is invalid.")
		}
	}
	if len(ids) != 7 || ids[6] != "shardId-000000000006" {
		t.Errorf("got %v", ids)
	}
	var desc describedStream
	d.must(t, "DescribeStream", `{"StreamName":"s","Limit":2,"ExclusiveStartShardId":"shardId-000000000003"}`, &desc)
	if s := desc.StreamDescription; len(s.Shards) != 2 || !s.HasMoreShards || s.Shards[0].ShardId != "shardId-000000000004" {
		t.Errorf("got %+v", s)
	}
}

// TestWire pins bytes that clients depend on.
func TestWire(t *testing.T) {
	d := openDoor(t, vfs.NewCrashable(), nil)
	f := func(op, body, want string) {
		t.Helper()
		if _, got := d.ask(t, op, body); got != want {
			t.Errorf("%s %s:\n got %s\nwant %s", op, body, got, want)
		}
	}
	f("Nonsense", `{}`, `{"__type":"UnknownOperationException"}`)
	f("ListStreams", `{`, `{"__type":"SerializationException"}`)
	f("ListStreams", ``, `{"__type":"SerializationException"}`)
	f("ListStreams", `{"Limit":"x"}`, `{"__type":"SerializationException","Message":"class java.lang.String can not be converted to an Integer"}`)
	f("ListStreams", `{}`, `{"StreamNames":[],"HasMoreStreams":false,"StreamSummaries":[]}`)
	f("DescribeStream", `{"StreamName":"a"}`, `{"__type":"ResourceNotFoundException","message":"Stream a under account 000000000000 not found."}`)
	f("CreateStream", `{"StreamName":"a","ShardCount":1}`, ``)
	d.putOne(t, "a", "k\"é", "x")
	it := d.iterator(t, "a", zero, horizon)
	_, got := d.ask(t, "GetRecords", `{"ShardIterator":"`+it+`"}`)
	var any map[string]any
	if err := json.Unmarshal([]byte(got), &any); err != nil {
		t.Fatal(err, got)
	}
	if strings.Contains(got, "EncryptionType") || !regexp.MustCompile(`"ApproximateArrivalTimestamp":\d{10}\.\d{3},`).MatchString(got) || !strings.Contains(got, `"PartitionKey":"k\"é"`) {
		t.Errorf("got %s", got)
	}
	var desc describedStream
	d.must(t, "DescribeStream", `{"StreamName":"a"}`, &desc)
	n, _ := new(big.Int).SetString(desc.StreamDescription.Shards[0].SequenceNumberRange.StartingSequenceNumber, 10)
	if n == nil || n.BitLen() != 186 {
		t.Errorf("starting sequence number %v", n)
	}
}
