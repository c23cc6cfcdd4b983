package alert

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
)

// An Email sends each notification by SMTP, one message per recipient, so that a mailbox that is gone silences nobody else.
type Email struct {
	Name         string   `yaml:"name,omitempty" doc:"default email"`
	Host         string   `yaml:"host" doc:"smtp.example.com"`
	Port         int      `yaml:"port,omitempty" doc:"default 587; 465 for tls: implicit; 25 for tls: none"`
	TLS          string   `yaml:"tls,omitempty" doc:"starttls (default: no TLS, no mail), opportunistic, implicit or none"`
	CAFile       string   `yaml:"ca_file,omitempty" doc:"PEM; default the system's authorities"`
	Username     string   `yaml:"username,omitempty" doc:"default: no authentication"`
	Password     string   `yaml:"password,omitempty" doc:"its password; rather use password_file"`
	PasswordFile string   `yaml:"password_file,omitempty" doc:"instead: a file that holds it"`
	From         string   `yaml:"from" doc:"Milepost <alerts@example.com>"`
	To           []string `yaml:"to" doc:"addresses; each gets a message of its own"`
	URL          string   `yaml:"url,omitempty" doc:"of this Milepost, for a link to the alert"`
	MinSeverity  string   `yaml:"min_severity,omitempty" doc:"milder alerts are not sent; default info: all"`
}

// TLS modes of an Email.
const (
	tlsStart         = "starttls"
	tlsOpportunistic = "opportunistic"
	tlsImplicit      = "implicit"
	tlsNone          = "none"
)

type emailSink struct {
	Email
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	opts []mail.Option
	told map[string]map[string]bool // notification → recipients that have it, while others are tried again
}

func newEmail(c Email) (*emailSink, error) {
	if c.PasswordFile != "" {
		b, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("password_file: %w", err)
		}
		c.Password = strings.TrimSpace(string(b))
	}
	roots, err := readCA(c.CAFile)
	if err != nil {
		return nil, err
	}
	s := &emailSink{Email: c, told: map[string]map[string]bool{}}
	port := c.Port
	defaultPort := func(p int) {
		if port == 0 {
			port = p
		}
	}
	secure := &tls.Config{RootCAs: roots, ServerName: c.Host, MinVersion: tls.VersionTLS12}
	s.opts = []mail.Option{mail.WithTLSConfig(secure), mail.WithoutNoop()}
	s.dial = new(net.Dialer).DialContext
	switch c.TLS {
	case "", tlsStart:
		defaultPort(587)
		s.opts = append(s.opts, mail.WithTLSPolicy(mail.TLSMandatory))
	case tlsOpportunistic:
		defaultPort(587)
		s.opts = append(s.opts, mail.WithTLSPolicy(mail.TLSOpportunistic))
	case tlsImplicit:
		defaultPort(465)
		s.dial = (&tls.Dialer{Config: secure}).DialContext
		s.opts = append(s.opts, mail.WithTLSPolicy(mail.TLSOpportunistic)) // it then sees that TLS is there already
	case tlsNone:
		defaultPort(25)
		s.opts = append(s.opts, mail.WithTLSPolicy(mail.NoTLS))
	}
	s.opts = append(s.opts, mail.WithPort(port))
	if c.Username != "" {
		s.opts = append(s.opts, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(c.Username), mail.WithPassword(c.Password))
	}
	return s, nil
}

// Name is the name that the configuration gives.
func (s *emailSink) Name() string { return s.Email.Name }

// Send hands one message to the mail server, on a connection of its own.
func (s *emailSink) Send(ctx context.Context, n Notification) error {
	opts := s.opts
	if d, ok := ctx.Deadline(); ok {
		opts = append(opts[:len(opts):len(opts)], mail.WithTimeout(max(time.Until(d), time.Millisecond)))
	}
	// The connection is ours to close: the library leaves it open when the greeting, STARTTLS or authentication fails, and no
	// longer listens to ctx once it is connected.
	hangUp := func() {}
	opts = append(opts[:len(opts):len(opts)], mail.WithDialContextFunc(func(dialing context.Context, network, addr string) (net.Conn, error) {
		conn, err := s.dial(dialing, network, addr)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			hangUp = func() {
				stop()
				_ = conn.Close() // closed already unless something failed, and that is reported
			}
		}
		return conn, err
	}))
	defer func() { hangUp() }()
	client, err := mail.NewClient(s.Host, opts...)
	if err != nil {
		return &RefusedError{err}
	}
	if len(s.told) > maxHeld {
		clear(s.told) // of notifications that were given up; at worst someone reads one twice
	}
	told := s.told[n.ID]
	var msgs []*mail.Msg
	var to []string
	for _, rcpt := range s.To {
		if told[rcpt] {
			continue
		}
		m, err := s.message(n, rcpt)
		if err != nil {
			return &RefusedError{err}
		}
		msgs, to = append(msgs, m), append(to, rcpt)
	}
	err = client.DialAndSendWithContext(ctx, msgs...)
	return s.outcome(n.ID, msgs, to, err)
}

// outcome tells apart who has the message, who never will, and who must be tried again.
func (s *emailSink) outcome(id string, msgs []*mail.Msg, to []string, err error) error {
	var refused, failed []error
	for i, m := range msgs {
		if m.IsDelivered() { // accepted, even if the session then broke
			if s.told[id] == nil {
				s.told[id] = map[string]bool{}
			}
			s.told[id][to[i]] = true
			continue
		}
		sendErr, ok := errors.AsType[*mail.SendError](m.SendError())
		switch {
		case ok && sendErr.ErrorCode() >= 500:
			refused = append(refused, fmt.Errorf("%s: %w", to[i], sendErr))
		case ok:
			failed = append(failed, fmt.Errorf("%s: %w", to[i], sendErr))
		case err != nil: // not reached: no connection, no TLS, no authentication
			return fmt.Errorf("%s: %w", s.Host, err)
		default:
			failed = append(failed, fmt.Errorf("%s: not sent", to[i]))
		}
	}
	if len(failed) > 0 {
		return errors.Join(append(failed, refused...)...)
	}
	delete(s.told, id)
	if len(refused) > 0 {
		return &RefusedError{fmt.Errorf("%d of %d recipients refused: %w", len(refused), len(s.To), errors.Join(refused...))}
	}
	return nil
}

func (s *emailSink) message(n Notification, to string) (*mail.Msg, error) {
	m := mail.NewMsg()
	if err := m.From(s.From); err != nil {
		return nil, err
	}
	if err := m.To(to); err != nil {
		return nil, err
	}
	a := &n.Alert
	m.Subject(fmt.Sprintf("[%s] %s", a.Severity, n.Text))
	// The same ID in every repetition, so that a mail program shows it once; the alert's first message heads the thread.
	domain := s.From[strings.LastIndexByte(s.From, '@')+1:]
	domain = strings.TrimRight(domain, "> ")
	m.SetMessageIDWithValue(strings.ReplaceAll(n.ID, "/", ".") + "@" + domain)
	if first := a.ID + ".firing@" + domain; n.ID != a.ID+"/firing" {
		m.SetGenHeader(mail.HeaderInReplyTo, "<"+first+">")
		m.SetGenHeader(mail.HeaderReferences, "<"+first+">")
	}
	m.SetGenHeader("Auto-Submitted", "auto-generated") // no out-of-office replies
	m.SetDate()
	m.SetBodyString(mail.TypeTextPlain, s.text(n))
	m.AddAlternativeString(mail.TypeTextHTML, s.html(n))
	return m, nil
}

// facts are the lines of a message below its first.
func (s *emailSink) facts(n Notification) [][2]string {
	a := &n.Alert
	out := [][2]string{
		{"Vehicle", a.Vehicle}, {"Rule", a.Rule + ": " + a.Condition}, {"Severity", a.Severity}, {"Since", moment(a.Since)}, {"Fired", moment(a.FiredAt)},
	}
	if a.ResolvedAt != 0 {
		out = append(out, [2]string{"Resolved", moment(a.ResolvedAt)}, [2]string{"Worst", fmt.Sprintf("%.4g %s", a.Peak, a.Unit)})
	}
	if a.HasPlace {
		out = append(out, [2]string{"Place", fmt.Sprintf("%.5f, %.5f", a.Lat, a.Lon)})
	}
	if s.URL != "" {
		out = append(out, [2]string{"Details", strings.TrimRight(s.URL, "/") + "/alerts/" + a.ID})
	}
	return out
}

func moment(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05 MST") }

func (s *emailSink) text(n Notification) string {
	var b strings.Builder
	b.WriteString(n.Text + "\n\n")
	for _, f := range s.facts(n) {
		fmt.Fprintf(&b, "%-9s %s\n", f[0]+":", f[1])
	}
	return b.String()
}

func (s *emailSink) html(n Notification) string {
	var b strings.Builder
	b.WriteString(`<!doctype html><body style="font-family:sans-serif"><p style="font-size:1.2em"><strong>` + html.EscapeString(n.Text) + "</strong></p><table>")
	for _, f := range s.facts(n) {
		v := html.EscapeString(f[1])
		if f[0] == "Details" {
			v = `<a href="` + v + `">` + v + "</a>"
		}
		b.WriteString(`<tr><td style="padding-right:1em">` + f[0] + "</td><td>" + v + "</td></tr>")
	}
	b.WriteString("</table></body>")
	return b.String()
}

// A logSink writes notifications to the program's log.
type logSink struct{ log *slog.Logger }

// Name is fixed: there is one log.
func (s *logSink) Name() string { return "log" }

// Send logs every transition as Info: an alert is about a vehicle, not about this program.
func (s *logSink) Send(ctx context.Context, n Notification) error {
	a := &n.Alert
	s.log.InfoContext(ctx, "alert", "transition", n.Transition, "rule", a.Rule, "vehicle", a.Vehicle, "severity", a.Severity,
		"summary", a.Summary, "notification", n.ID)
	return nil
}
