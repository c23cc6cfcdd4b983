package device

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Diagnosis says why a device cannot get in, or why nothing is seen of it.
type Diagnosis struct {
	Device   string   `json:"device"`
	Verdict  string   `json:"verdict"` // one of the constants below
	OK       bool     `json:"ok"`
	Summary  string   `json:"summary"`            // a sentence
	Mend     []string `json:"mend,omitempty"`     // what to do, in order
	Evidence []string `json:"evidence,omitempty"` // what the doors saw
	Notes    []string `json:"notes,omitempty"`    // what else is worth knowing
}

// Verdicts beside the classes of refusals.
const (
	Fine            = "fine"
	NeverSeen       = "never_seen"
	Offline         = "offline"
	Silent          = "silent"
	TopicNotAllowed = "topic_not_allowed"
	PayloadRefused  = "payload_refused"
	ClockWrong      = "clock"
	TwoClients      = "two_clients"
)

// Facts are what a diagnosis is made from.
type Facts struct {
	ID       string
	Now      time.Time
	Device   *Device   // nil: not enrolled
	Seen     Record    // of the device
	Refused  Record    // under the device's name
	Nameless []Attempt // of clients that gave no name, newest first
	// The last reading of its vehicle: when it was measured and when it came; zero: none.
	Measured, Arrived time.Time
	Policy            PolicySpec // as it applies to the device
	MayPublish        func(topic string) bool
}

const (
	silentAfter = 10 * time.Minute // connected for that long without a message
	clockOff    = 5 * time.Minute
	takeOvers   = 3 // in takeOverIn
	takeOverIn  = 10 * time.Minute
	soonEnds    = 30 * 24 * time.Hour
)

// Diagnose decides. It looks at what stops a device first, then at what it did last, then at what it sends.
func Diagnose(f Facts) Diagnosis {
	d := Diagnosis{Device: f.ID}
	d.evidence(&f)
	last := lastAttempt(f.Refused)
	inSince := last == nil || f.Seen.LastConnect.After(last.At)
	switch {
	case f.Device == nil && last == nil:
		d.say(NeverSeen, "%s is not enrolled, and nobody has tried to connect under that name.", f.ID)
		d.Mend = []string{"enrol it: milepost device enroll " + f.ID, "check the id: 'milepost device list' has those that are enrolled"}
	case f.Device == nil:
		d.say(last.Class, "%s is not enrolled. Its last attempt, %s, was refused: %s", f.ID, ago(f.Now, last.At), last.Text)
		d.Mend = []string{"enrol it: milepost device enroll " + f.ID, "or trust the authority that issued its certificate: milepost ca import"}
	case f.Device.Status == Barred:
		d.say(Revoked, "%s is revoked: it is refused whatever it brings.", f.ID)
		d.Mend = []string{"if it may come back, enrol it anew: milepost device enroll " + f.ID}
	case f.Device.Status == Disabled:
		d.say(Suspended, "%s is disabled.", f.ID)
		d.Mend = []string{"let it in again: milepost device enable " + f.ID}
	case f.Seen.Connections == 0 && len(f.Device.Certificates) > 0 && f.Device.Password == "" && f.Device.Newest(f.Now) == nil:
		d.noCertificate(&f)
	case f.Seen.Connections == 0 && !inSince:
		d.refused(&f, last)
	case f.Seen.LastConnect.IsZero():
		d.neverSeen(&f)
	case flapping(&f):
		d.say(TwoClients, "%s is connected by two clients that throw each other out: a client id belongs to one connection at a time.", f.ID)
		d.Mend = []string{"find the other one (evidence has the addresses): a second unit with a copied certificate, a test script, or an old process that still runs"}
	case f.Seen.Connections == 0:
		d.offline(&f)
	default:
		d.connected(&f)
	}
	d.soon(&f)
	return d
}

func (d *Diagnosis) say(verdict, format string, args ...any) {
	d.Verdict, d.Summary = verdict, fmt.Sprintf(format, args...)
}

func lastAttempt(r Record) *Attempt {
	if len(r.Attempts) == 0 {
		return nil
	}
	return &r.Attempts[len(r.Attempts)-1]
}

func (d *Diagnosis) evidence(f *Facts) {
	r := &f.Seen
	if !r.LastConnect.IsZero() {
		d.Evidence = append(d.Evidence, fmt.Sprintf("last connected %s from %s as client %q", ago(f.Now, r.LastConnect), r.Remote, r.ClientID))
	}
	if n := len(r.Departures); n > 0 {
		d.Evidence = append(d.Evidence, fmt.Sprintf("last disconnected %s: %s", ago(f.Now, r.Departures[n-1].At), r.Departures[n-1].Why))
	}
	if !r.LastMessage.IsZero() {
		d.Evidence = append(d.Evidence, "last message "+ago(f.Now, r.LastMessage))
	}
	for _, a := range slices.Backward(f.Refused.Attempts[max(0, len(f.Refused.Attempts)-3):]) {
		text := fmt.Sprintf("refused %s from %s (%s%s): %s", ago(f.Now, a.At), a.Remote, a.Class, times(a.Times), a.Text)
		if a.Serial != "" {
			text += fmt.Sprintf(" [certificate %s, serial %s, %s to %s, issued by %s]", a.Subject, a.Serial, day(a.NotBefore), day(a.NotAfter), a.Issuer)
		}
		d.Evidence = append(d.Evidence, text)
	}
	for _, m := range slices.Backward(r.Rejections[max(0, len(r.Rejections)-3):]) {
		d.Evidence = append(d.Evidence, fmt.Sprintf("message refused %s on topic %s (%s%s): %s", ago(f.Now, m.At), m.Topic, m.Why, times(m.Times), m.Text))
	}
}

func times(n int) string {
	if n < 2 {
		return ""
	}
	return fmt.Sprintf(", %d times", n)
}

// noCertificate is for an enrolled device none of whose certificates is good.
func (d *Diagnosis) noCertificate(f *Facts) {
	newest := slices.MaxFunc(f.Device.Certificates, func(a, b Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	again := "give it a new one: milepost device enroll cannot be used twice, so 'milepost device rotate " + f.ID + "', or 'milepost device token create --device " + f.ID + "' and a request from the device"
	switch {
	case !newest.Revoked.IsZero():
		d.say(Revoked, "Every certificate of %s is revoked or has ended; the newest was revoked on %s.", f.ID, day(newest.Revoked))
	default:
		d.say(Expired, "The certificate of %s ended on %s.", f.ID, day(newest.ends()))
	}
	d.Mend = []string{again}
}

// refused is for a device whose last attempt failed and that is not connected.
func (d *Diagnosis) refused(f *Facts, a *Attempt) {
	d.say(a.Class, "The last attempt under the name %s, %s, was refused: %s.", f.ID, ago(f.Now, a.At), strings.TrimSuffix(a.Text, "."))
	have := ""
	if c := f.Device.Newest(f.Now); c != nil {
		have = fmt.Sprintf("serial %s, until %s", c.Serial, day(c.ends()))
	}
	switch a.Class {
	case Expired:
		d.Mend = []string{"the device still uses an old certificate", "install the present one (" + have + "), or 'milepost device rotate " + f.ID + "'"}
	case NotYetValid:
		d.Mend = []string{
			fmt.Sprintf("compare clocks: the server has %s; the certificate begins at %s", f.Now.UTC().Format(time.RFC3339), a.NotBefore.UTC().Format(time.RFC3339)),
			"set the clock of the machine that is wrong (NTP), the server's or the one that issued the certificate",
		}
	case UnknownCA:
		d.Mend = []string{"the device shows a certificate of " + a.Issuer + "; it is enrolled with " + have, "install that one on the device", "or trust the other authority: milepost ca import"}
	case Revoked:
		d.Mend = []string{"the device still uses a certificate that was revoked or replaced; install the present one (" + have + ")"}
	case NoCertificate:
		d.Mend = []string{"configure certificate and key on the device, and the TLS port", "try them: openssl s_client -connect HOST:8883 -CAfile root.crt -cert " + f.ID + ".crt -key " + f.ID + ".key"}
	case WrongClientID:
		d.Mend = []string{"set the client id to " + f.ID + " (or one of: " + strings.Join(f.Policy.ClientIDs, ", ") + ")"}
		if !strings.EqualFold(a.ClientID, f.ID) {
			d.Mend = append(d.Mend, "if the certificate shown is another device's ("+a.Subject+"), install the one of "+f.ID)
		}
	case WrongPassword:
		d.Mend = []string{"set a new password: milepost device password " + f.ID, "use the device id as user name, over TLS"}
	case NotEnrolled:
		d.Mend = []string{"register the certificate that it has: milepost device enroll " + f.ID + " --certificate FILE, or issue one: milepost device rotate " + f.ID}
	default:
		d.Mend = []string{"it comes again by itself; if not, look at the server's log"}
	}
}

func (d *Diagnosis) neverSeen(f *Facts) {
	d.say(NeverSeen, "%s is enrolled and has never reached the server: no connection and no attempt under its name.", f.ID)
	d.Mend = []string{
		"check host name and port on the device: MQTT over TLS is port 8883 unless configured otherwise",
		"check the way there from the device's network: DNS, firewall, mobile APN",
		"check that the device trusts this server's root: milepost ca export",
	}
	if len(f.Nameless) > 0 {
		d.Mend = append(d.Mend, "look whether one of the attempts without a name is it (evidence)")
		for _, a := range f.Nameless[:min(3, len(f.Nameless))] {
			d.Evidence = append(d.Evidence, fmt.Sprintf("somebody at %s, %s%s: %s", a.Remote, ago(f.Now, a.At), times(a.Times), a.Text))
		}
	}
}

// flapping tells whether connections of the device end each other.
func flapping(f *Facts) bool {
	n := 0
	for _, x := range f.Seen.Departures {
		why := strings.ToLower(x.Why)
		if f.Now.Sub(x.At) <= takeOverIn && (strings.Contains(why, "taken over") || strings.Contains(why, "take-over") || strings.Contains(why, "takeover")) {
			n++
		}
	}
	return n >= takeOvers
}

func (d *Diagnosis) offline(f *Facts) {
	why := "the server was restarted since, or the end was not seen"
	if n := len(f.Seen.Departures); n > 0 {
		why = f.Seen.Departures[n-1].Why
	}
	d.say(Offline, "%s is not connected. It was let in %s; the connection ended: %s.", f.ID, ago(f.Now, f.Seen.LastConnect), why)
	d.Mend = []string{"check power and network of the device: it has not tried again since, or does not reach the server"}
}

func (d *Diagnosis) connected(f *Facts) {
	r := &f.Seen
	if n := len(r.Rejections); n > 0 && !r.Rejections[n-1].At.Before(r.LastMessage) && !r.Rejections[n-1].At.Before(f.Arrived) {
		m := r.Rejections[n-1]
		if f.MayPublish != nil && !f.MayPublish(m.Topic) {
			d.say(TopicNotAllowed, "%s is connected and publishes to %s, which its policy %s does not allow.", f.ID, m.Topic, f.Policy.Name)
			d.Mend = []string{"publish to one of: " + strings.Join(f.Policy.Publish, ", "), "or allow the topic: give it another policy with 'milepost device set " + f.ID + " --policy NAME'"}
			return
		}
		d.say(PayloadRefused, "%s is connected, and its messages are refused (%s): %s", f.ID, m.Why, m.Text)
		d.Mend = []string{"mend what the device sends on " + m.Topic, "refused messages are kept in the stream dead-letters"}
		return
	}
	heard := r.LastMessage
	if f.Arrived.After(heard) {
		heard = f.Arrived
	}
	quiet := f.Now.Sub(later(heard, r.LastConnect))
	switch off := f.Arrived.Sub(f.Measured); {
	case quiet > silentAfter || heard.IsZero():
		d.say(Silent, "%s is connected and has published nothing%s.", f.ID, sinceText(f.Now, heard))
		d.OK = quiet <= silentAfter
		d.Mend = []string{"check that the device publishes, and with QoS 1 waits for the acknowledgement", "topics that it may publish to: " + strings.Join(f.Policy.Publish, ", ")}
	case !f.Arrived.IsZero() && -off > clockOff:
		d.say(ClockWrong, "%s is connected, and its readings are dated %s in the future: its clock is ahead.", f.ID, round(-off))
		d.Mend = []string{"set the device's clock (NTP, GNSS time, or the time zone: send UTC)"}
	case !f.Arrived.IsZero() && off > clockOff:
		d.say(ClockWrong, "%s is connected, and its newest reading was %s old when it came: it sends a backlog, or its clock is late.", f.ID, round(off))
		d.Mend = []string{"if it is not catching up after being offline, set the device's clock (NTP, GNSS time, or the time zone: send UTC)"}
	default:
		d.say(Fine, "%s is connected and its messages arrive; the last came %s.", f.ID, ago(f.Now, heard))
		d.OK = true
	}
}

func sinceText(now, heard time.Time) string {
	if heard.IsZero() {
		return " yet"
	}
	return " for " + round(now.Sub(heard))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// soon adds what will go wrong next.
func (d *Diagnosis) soon(f *Facts) {
	if f.Device == nil || f.Device.Status != Active {
		return
	}
	if c := f.Device.Newest(f.Now); c != nil && c.ends().Sub(f.Now) < soonEnds {
		d.Notes = append(d.Notes, fmt.Sprintf("its certificate ends in %s, on %s: rotate it", round(c.ends().Sub(f.Now)), day(c.ends())))
	}
	if last := lastAttempt(f.Refused); last != nil && d.OK && f.Now.Sub(last.At) < time.Hour {
		d.Notes = append(d.Notes, fmt.Sprintf("somebody else tried under its name %s from %s and was refused (%s)", ago(f.Now, last.At), last.Remote, last.Class))
	}
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return round(now.Sub(t)) + " ago"
}

// round writes a duration as people say it.
func round(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "1 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// isAlert tells whether the other side ended a handshake.
func isAlert(err error) bool {
	_, ok := errors.AsType[tls.AlertError](err)
	return ok || strings.Contains(err.Error(), "remote error: tls:")
}

// handshakeHint says what usually lies behind a failed handshake.
func handshakeHint(err error) string {
	text := err.Error()
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
	}
	switch {
	case isAlert(err) && has("unknown certificate authority", "unknown ca"):
		return ": the client does not trust this server's certificate: give it the root ('milepost ca export')"
	case isAlert(err) && has("expired certificate"):
		return ": the client holds this server's certificate for expired: its clock may be ahead"
	case isAlert(err) && has("bad certificate", "unknown certificate", "certificate unknown"):
		return ": the client refused this server's certificate: the host name it uses may be missing in it ('milepost ca server --host'), its root may be missing on the client, or the client's clock is wrong"
	case has("first record does not look like a TLS handshake"):
		return ": the client speaks without TLS on the TLS port"
	case has("protocol version", "unsupported versions"):
		return ": the client offers only TLS 1.1 or older: TLS 1.2 is the least"
	case has("no cipher suite", "handshake failure"):
		return ": client and server have no cipher in common"
	case has("invalid signature by the client certificate"):
		return ": the client's key does not belong to its certificate"
	}
	return ""
}
