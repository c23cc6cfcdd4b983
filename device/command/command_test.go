package command_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/milepost/milepost/device/command"
	"github.com/milepost/milepost/ingest/mqtt/broker"
	"github.com/milepost/milepost/internal/vfs"
	"github.com/milepost/milepost/state/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world has a broker and a desk over one store, and can crash.
type world struct {
	t      *testing.T
	fs     *vfs.MemFS
	limits command.Limits
	store  *local.Store
	b      *broker.Broker
	d      *command.Desk
}

func newWorld(t *testing.T, l command.Limits) *world {
	w := &world{t: t, fs: vfs.NewCrashable(), limits: l}
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	check := func() {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.store, err = local.Open(local.Config{FS: w.fs, Dir: "state", MemBytes: 1 << 20, CacheBytes: 1 << 20})
	check()
	w.b, err = broker.Open(w.t.Context(), broker.Config{Store: w.store, Listening: func(conn uint64, device, filter string) {
		w.d.Listening(conn, device, filter)
	}})
	check()
	w.d, err = command.Open(w.t.Context(), command.Config{Store: w.store, Send: w.b, Limits: w.limits, Serves: func(device, vehicle string) bool {
		return device == vehicle || device == "gateway"
	}})
	check()
}

func (w *world) close() {
	for _, c := range []io.Closer{w.b, w.d, w.store} {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) crash(seed uint64) {
	w.t.Helper()
	after := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed%5) * 25, RNG: rand.New(rand.NewPCG(seed, 0))})
	w.close()
	w.fs = after
	w.open()
}

type conn struct {
	w *world
	s *broker.Session
}

func (conn) Wake()     {}
func (conn) Kick(byte) {}

// connect connects a device and subscribes, if there is a filter.
func (w *world) connect(device string, expiry uint32, qos byte, filter string) conn {
	w.t.Helper()
	s, _, err := w.b.Connect(broker.Connect{ClientID: device, Device: device, Version: 5, Expiry: expiry}, conn{})
	if err != nil {
		w.t.Fatal(err)
	}
	if filter != "" {
		if codes, _ := s.Subscribe([]broker.Subscription{{Filter: filter, QoS: qos}}, nil); codes[0] != qos {
			w.t.Fatalf("subscribe %s: %#x", filter, codes)
		}
	}
	return conn{w, s}
}

// got takes what there is and acknowledges it, or not; it returns the names of the commands.
func (c conn) got(acknowledge bool) string {
	c.w.t.Helper()
	var names []string
	for _, d := range c.s.Pull(nil, 1000) {
		var doc struct {
			ID, Name string
			Payload  json.RawMessage
		}
		if err := json.Unmarshal(d.Payload, &doc); err != nil || doc.ID == "" {
			c.w.t.Fatalf("%s: %v", d.Payload, err)
		}
		names = append(names, doc.Name+string(doc.Payload))
		if acknowledge && d.QoS > 0 {
			c.s.Puback(d.PacketID, 0)
		}
	}
	return strings.Join(names, " ")
}

func (w *world) issue(vehicle, name string) command.Command {
	w.t.Helper()
	c, _, err := w.d.Issue(w.t.Context(), vehicle, command.Request{Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// is waits until a command is as it should be: acknowledgements are recorded a moment later.
func (w *world) is(c command.Command, what string, f func(command.Command) bool) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; {
		got, err := w.d.Command(w.t.Context(), c.Vehicle, c.ID)
		if err == nil && f(got) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s is not %s: %+v, %v", c.Name, what, got, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (w *world) state(c command.Command, s command.State) {
	w.t.Helper()
	w.is(c, string(s), func(c command.Command) bool { return c.State == s })
}

func (w *world) delivered(c command.Command) {
	w.t.Helper()
	w.is(c, "delivered", func(c command.Command) bool { return c.DeliveredAt != nil })
}

func (w *world) answer(topic, doc string) {
	w.t.Helper()
	if handled, err := w.d.Handle(w.t.Context(), "v1", topic, []byte(doc)); !handled || err != nil {
		w.t.Errorf("%s %s: %v, %v", topic, doc, handled, err)
	}
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestDelivery(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *world){
		"to who is connected, and its life": func(t *testing.T, w *world) {
			v := w.connect("v1", 0, 1, "fleet/v1/commands")
			c, fresh, err := w.d.Issue(t.Context(), "v1", command.Request{Name: "lock", Payload: json.RawMessage(`{"door":1}`)})
			if err != nil || !fresh || c.State != command.Sent || c.Sends != 1 || c.Device != "v1" {
				t.Fatalf("%+v, %v", c, err)
			}
			want(t, "got", v.got(true), `lock{"door":1}`)
			w.delivered(c)
			w.answer("fleet/v1/commands/"+c.ID+"/ack", `{"status":"accepted"}`)
			w.state(c, command.Acknowledged)
			for range 2 { // a repetition is no error
				w.answer("fleet/v1/commands/ack", `{"id":"`+c.ID+`","status":"done","result":{"locked":true}}`)
			}
			w.is(c, "done", func(c command.Command) bool {
				return c.State == command.Done && c.EndedAt != nil && c.AcknowledgedAt != nil && string(c.Result) == `{"locked":true}`
			})
			if handled, err := w.d.Handle(t.Context(), "v1", "fleet/v1/commands/"+c.ID+"/ack", []byte(`{"status":"failed"}`)); !handled || !errors.Is(err, command.ErrEnded) {
				t.Errorf("%v, %v", handled, err)
			}
		},
		"to who comes later, without a persistent session, in order": func(t *testing.T, w *world) {
			a, b := w.issue("v1", "one"), w.issue("v1", "two")
			w.issue("v2", "other")
			w.state(a, command.Queued)
			v := w.connect("v1", 0, 1, "fleet/v1/#")
			want(t, "got", v.got(true), "one two")
			w.delivered(a)
			w.delivered(b)
			v.s.Disconnect(0, false)
			want(t, "later", w.connect("v1", 0, 1, "fleet/v1/commands").got(true), "")
		},
		"once to a persistent session that was away": func(t *testing.T, w *world) {
			v := w.connect("v1", 3600, 1, "fleet/v1/commands")
			v.s.Disconnect(0, false)
			c := w.issue("v1", "one")
			w.state(c, command.Queued)
			v = w.connect("v1", 3600, 1, "")
			want(t, "got", v.got(true), "one")
			w.delivered(c)
			v.s.Disconnect(0, false)
			want(t, "later", w.connect("v1", 3600, 1, "fleet/v1/commands").got(true), "")
		},
		"again, when the connection was lost before PUBACK": func(t *testing.T, w *world) {
			for _, expiry := range []uint32{0, 3600} {
				v := w.connect("v1", expiry, 1, "fleet/v1/commands")
				c := w.issue("v1", "one")
				want(t, "got", v.got(false), "one")
				v.s.Disconnect(broker.Unspecified, true)
				v = w.connect("v1", expiry, 1, "fleet/v1/commands")
				want(t, "again", v.got(true), "one")
				w.delivered(c)
				w.is(c, "sent twice", func(c command.Command) bool { return c.Sends == 2 })
				v.s.Disconnect(0, false)
			}
		},
		"not twice to one connection that subscribes twice": func(t *testing.T, w *world) {
			w.issue("v1", "one")
			v := w.connect("v1", 0, 1, "fleet/v1/commands")
			v.s.Subscribe([]broker.Subscription{{Filter: "fleet/+/commands", QoS: 1}}, nil)
			want(t, "got", v.got(true), "one")
		},
		"through a crash": func(t *testing.T, w *world) {
			a := w.issue("v1", "one")
			w.crash(1)
			w.state(a, command.Queued)
			v := w.connect("v1", 0, 1, "fleet/v1/commands")
			want(t, "got", v.got(true), "one")
			w.delivered(a)
			b := w.issue("v1", "two")
			w.crash(2)
			want(t, "again: nobody knows whether it arrived", w.connect("v1", 0, 1, "fleet/v1/commands").got(true), "two")
			w.delivered(b)
			w.answer("fleet/v1/commands/"+a.ID+"/ack", `{"status":"failed","reason":"jammed"}`)
			w.crash(3)
			w.is(a, "failed", func(c command.Command) bool { return c.State == command.Failed && c.Reason == "jammed" })
		},
		"QoS 0 counts as delivered": func(t *testing.T, w *world) {
			v := w.connect("v1", 0, 0, "fleet/v1/commands")
			c := w.issue("v1", "one")
			want(t, "got", v.got(true), "one")
			w.delivered(c)
		},
		"an onlooker does not count": func(t *testing.T, w *world) {
			o := w.connect("onlooker", 0, 1, "fleet/+/commands")
			c := w.issue("v1", "one")
			want(t, "onlooker", o.got(true), "one")
			w.state(c, command.Queued)
			g := w.connect("gateway", 0, 1, "fleet/+/commands")
			want(t, "gateway", g.got(true), "one")
			w.delivered(c)
		},
		"a device may refuse the message": func(t *testing.T, w *world) {
			v := w.connect("v1", 0, 1, "fleet/v1/commands")
			c := w.issue("v1", "one")
			v.s.Puback(v.s.Pull(nil, 1)[0].PacketID, 0x83)
			w.is(c, "failed", func(c command.Command) bool { return c.State == command.Failed && strings.Contains(c.Reason, "0x83") })
		},
		"expiry": func(t *testing.T, w *world) {
			soon := time.Now().Add(50 * time.Millisecond)
			c, _, err := w.d.Issue(t.Context(), "v1", command.Request{Name: "one", Expires: soon})
			if err != nil {
				t.Fatal(err)
			}
			w.state(c, command.Expired)
			want(t, "got", w.connect("v1", 0, 1, "fleet/v1/commands").got(true), "")
			a, _, err := w.d.Issue(t.Context(), "v1", command.Request{Name: "two", Expires: time.Now().Add(50 * time.Millisecond)})
			if err != nil {
				t.Fatal(err)
			}
			w.answer("fleet/v1/commands/"+a.ID+"/ack", `{"status":"accepted"}`)
			w.crash(1) // its time to finish goes on
			w.is(a, "expired", func(c command.Command) bool {
				return c.State == command.Expired && strings.Contains(c.Reason, "accepted")
			})
		},
		"cancel": func(t *testing.T, w *world) {
			c := w.issue("v1", "one")
			if c, err := w.d.Cancel(t.Context(), "v1", c.ID, "ann"); err != nil || c.State != command.Cancelled || c.Reason != "cancelled by ann" {
				t.Errorf("%+v, %v", c, err)
			}
			want(t, "got", w.connect("v1", 0, 1, "fleet/v1/commands").got(true), "")
			if _, err := w.d.Cancel(t.Context(), "v1", c.ID, ""); !errors.Is(err, command.ErrEnded) {
				t.Error(err)
			}
			if _, err := w.d.Cancel(t.Context(), "v1", "c77", ""); !errors.Is(err, command.ErrNotFound) {
				t.Error(err)
			}
		},
		"idempotency keys": func(t *testing.T, w *world) {
			r := command.Request{Name: "one", Key: "k"}
			a, fresh, err := w.d.Issue(t.Context(), "v1", r)
			if err != nil || !fresh {
				t.Fatal(err)
			}
			w.crash(1)
			b, fresh, err := w.d.Issue(t.Context(), "v1", r)
			if err != nil || fresh || a.ID != b.ID {
				t.Errorf("%+v, %v, %v", b, fresh, err)
			}
			r.Name = "two"
			if _, _, err := w.d.Issue(t.Context(), "v1", r); !errors.Is(err, command.ErrKey) {
				t.Error(err)
			}
			if c, fresh, err := w.d.Issue(t.Context(), "v2", r); err != nil || !fresh || c.ID == a.ID {
				t.Error("another vehicle's key", err)
			}
		},
		"bounds": func(t *testing.T, w *world) {
			var all []command.Command
			for i := range 3 {
				all = append(all, w.issue("v1", fmt.Sprint(i)))
			}
			if _, _, err := w.d.Issue(t.Context(), "v1", command.Request{Name: "x"}); !errors.Is(err, command.ErrFull) {
				t.Error(err)
			}
			for _, c := range all {
				w.answer("fleet/v1/commands/"+c.ID+"/ack", `{"status":"done"}`)
			}
			w.issue("v1", "3")
			list, err := w.d.List(t.Context(), "v1", "", 10)
			var names []string
			for _, c := range list {
				names = append(names, c.Name)
			}
			want(t, "history of two, and what is open", fmt.Sprint(names, err), "[3 2 1] <nil>")
			half := command.Request{Name: "x", Payload: json.RawMessage(`"` + strings.Repeat("p", 60) + `"`)}
			for _, crash := range []bool{true, false} {
				c, _, err := w.d.Issue(t.Context(), "v2", half)
				if err != nil {
					t.Fatal(err)
				}
				if crash {
					w.crash(1)
				}
				if _, _, err := w.d.Issue(t.Context(), "v3", half); !errors.Is(err, command.ErrFull) {
					t.Error("bytes of all", err)
				}
				if _, err := w.d.Cancel(t.Context(), "v2", c.ID, ""); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := command.Limits{Finish: 200 * time.Millisecond}
			if name == "bounds" {
				l = command.Limits{Open: 3, History: 2, Bytes: 100}
			}
			test(t, newWorld(t, l))
		})
	}
}

func TestAnswersThatCannotBeUsed(t *testing.T) {
	w := newWorld(t, command.Limits{})
	c := w.issue("v1", "one")
	for _, a := range []struct {
		topic, doc string
		handled    bool
	}{
		{"fleet/v1/commands", "{}", false},
		{"fleet/v1/commands/x", "{}", false},
		{"fleet/v1/commands/a/b/ack", "{}", false},
		{"fleet/v1/x/commands/ack", "{}", false},
		{"other/v1/commands/ack", "{}", false},
		{"fleet/v1/commands/ack", "", true},
		{"fleet/v1/commands/ack", "[]", true},
		{"fleet/v1/commands/ack", `{"status":"done"}`, true},
		{"fleet/v2/commands/" + c.ID + "/ack", `{"status":"done"}`, true},
		{"fleet/v1/commands/" + c.ID + "/ack", `{"status":"maybe"}`, true},
		{"fleet/v1/commands/" + c.ID + "/ack", `{"status":"done","id":"other"}`, true},
		{"fleet/v1/commands/" + c.ID + "/ack", `{"status":"done","reason":"` + strings.Repeat("x", 2000) + `"}`, true},
	} {
		handled, err := w.d.Handle(t.Context(), "v1", a.topic, []byte(a.doc))
		if handled != a.handled || (err != nil) != a.handled {
			t.Errorf("%s %.60s: %v, %v", a.topic, a.doc, handled, err)
		}
	}
	w.state(c, command.Queued)
}

func FuzzAnswer(f *testing.F) {
	f.Add("fleet/v1/commands/ack", []byte(`{"id":"c01","status":"done"}`))
	f.Add("fleet/v1/commands/c01/ack", []byte(`{"status":"accepted","result":[1]}`))
	fs := vfs.NewCrashable()
	store, err := local.Open(local.Config{FS: fs, Dir: "state"})
	if err != nil {
		f.Fatal(err)
	}
	b, err := broker.Open(context.Background(), broker.Config{Store: store})
	if err != nil {
		f.Fatal(err)
	}
	d, err := command.Open(context.Background(), command.Config{Store: store, Send: b})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _, _, _ = d.Close(), b.Close(), store.Close() })
	f.Fuzz(func(t *testing.T, topic string, doc []byte) {
		if _, err := d.Handle(t.Context(), "v1", topic, doc); err != nil && !command.IsMistake(err) {
			t.Error(err)
		}
	})
}

func TestHTTP(t *testing.T) {
	w := newWorld(t, command.Limits{Payload: 100})
	mux := http.NewServeMux()
	command.NewHandler(w.d, "secret").Register(mux)
	do := func(method, path, body string, header ...string) (int, map[string]any) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer secret")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, r)
		var doc map[string]any
		_ = json.Unmarshal(rec.Body.Bytes(), &doc)
		if rec.Code >= 400 && rec.Code != 405 && (doc["detail"] == "" || doc["status"] != float64(rec.Code)) {
			t.Errorf("%s %s: %d without a problem document: %s", method, path, rec.Code, rec.Body)
		}
		return rec.Code, doc
	}
	const all = "/v1/vehicles/v1/commands"
	status, c := do("POST", all, `{"name":"lock","payload":{"door":1},"expires_in":60}`, "Idempotency-Key", "k")
	if status != 201 || c["state"] != "queued" {
		t.Fatalf("%d %v", status, c)
	}
	id, _ := c["id"].(string)
	if status, again := do("POST", all, `{"name":"lock","payload":{"door":1},"expires_in":60}`, "Idempotency-Key", "k"); status != 200 || again["id"] != id {
		t.Errorf("%d %v", status, again)
	}
	for _, x := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", all, `{"name":"open","key":"k"}`, 409},
		{"POST", all, `{"name":""}`, 400},
		{"POST", all, `{"nam":"lock"}`, 400},
		{"POST", all, `{"name":"lock"}{}`, 400},
		{"POST", all, `nonsense`, 400},
		{"POST", all, `{"name":"lock","expires_in":-1}`, 400},
		{"POST", all, `{"name":"lock","expires":"2001-01-01T00:00:00Z"}`, 400},
		{"POST", all, `{"name":"lock","expires":"2001-01-01T00:00:00Z","expires_in":5}`, 400},
		{"POST", all, `{"name":"lock","payload":"` + strings.Repeat("x", 101) + `"}`, 400},
		{"POST", all, `{"name":"lock","payload":"` + strings.Repeat("x", 9000) + `"}`, 413},
		{"POST", "/v1/vehicles/%2B/commands", `{"name":"lock"}`, 400},
		{"GET", all + "?state=queued", "", 200},
		{"GET", all + "?state=open", "", 400},
		{"GET", all + "?limit=0", "", 400},
		{"GET", all + "/" + id, "", 200},
		{"GET", all + "/c77", "", 404},
		{"GET", "/v1/vehicles/v2/commands/" + id, "", 404},
		{"DELETE", all + "/" + id, "", 200},
		{"DELETE", all + "/" + id, "", 409},
		{"DELETE", all + "/c77", "", 404},
		{"PUT", all + "/" + id, "", 405},
	} {
		if status, doc := do(x.method, x.path, x.body); status != x.status {
			t.Errorf("%s %s %.60s: %d, want %d: %v", x.method, x.path, x.body, status, x.status, doc)
		}
	}
	if status, _ := do("GET", all, "", "Authorization", "Bearer wrong"); status != 401 {
		t.Errorf("without the token: %d", status)
	}
	_, doc := do("GET", all, "")
	if list, ok := doc["commands"].([]any); !ok || len(list) != 1 {
		t.Errorf("%v", doc)
	}
}

// A device that connects, disappears, acknowledges late or never, answers, and a server that crashes: every command that was issued
// is answered in the end, or still waits; none is lost, and none comes again after its message was acknowledged on disk.
func TestCommandsSurviveAnything(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 5))
		w := newWorld(t, command.Limits{Open: 1000, History: 1000})
		issued := map[string]command.Command{}
		got := map[string]int{}
		settled := map[string]int{} // what it had come to when its acknowledgement was on disk
		online := false
		var c conn
		take := func() {
			for _, d := range c.s.Pull(nil, 1+rng.IntN(5)) {
				var doc struct{ ID string }
				if err := json.Unmarshal(d.Payload, &doc); err != nil {
					t.Fatal(err)
				}
				got[doc.ID]++
				if n, ok := settled[doc.ID]; ok && got[doc.ID] > n {
					t.Errorf("seed %d: %s came again", seed, doc.ID)
				}
				if rng.IntN(3) > 0 {
					c.s.Puback(d.PacketID, 0)
				}
				if rng.IntN(3) == 0 {
					w.answer("fleet/v1/commands/"+doc.ID+"/ack", `{"status":"done"}`)
				}
			}
		}
		for step := range 300 {
			switch n := rng.IntN(100); {
			case n < 35:
				i := w.issue("v1", fmt.Sprint(step))
				issued[i.ID] = i
			case n < 70:
				if online {
					take()
				}
			case n < 80:
				for id, i := range issued {
					if now, err := w.d.Command(t.Context(), "v1", id); err != nil {
						t.Fatalf("%+v: %v", i, err)
					} else if now.DeliveredAt != nil {
						if _, ok := settled[id]; !ok {
							settled[id] = got[id]
						}
					}
				}
			case n < 96:
				if online {
					c.s.Disconnect(broker.Unspecified, true)
				} else {
					c = w.connect("v1", uint32(rng.IntN(2)*3600), 1, "fleet/v1/commands")
				}
				online = !online
			default:
				w.crash(seed*1000 + uint64(step))
				online = false
			}
		}
		if online {
			c.s.Disconnect(broker.Unspecified, true)
		}
		c = w.connect("v1", 0, 1, "fleet/v1/commands")
		for _, d := range c.s.Pull(nil, 10000) {
			var doc struct{ ID string }
			if err := json.Unmarshal(d.Payload, &doc); err != nil {
				t.Fatal(err)
			}
			got[doc.ID]++
		}
		for id, i := range issued {
			if got[id] == 0 {
				t.Errorf("seed %d: %s (%s) never came", seed, id, i.Name)
			}
		}
	}
}
