package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// benchDevicesVariable makes this program a process full of devices: a process may have so many files open, and the server is to be the
// only one that this bounds. It reads its devicesConfig and then words from standard input, a line each, and answers in lines of JSON.
const benchDevicesVariable = "MILEPOST_BENCH_DEVICES"

// devicesConfig says which devices a process is, and what they do.
type devicesConfig struct {
	Addr    string `json:"addr"`
	Roots   string `json:"roots"` // PEM of what they trust; "": no TLS
	First   int    `json:"first"` // number of the first
	Count   int    `json:"count"`
	Backlog int    `json:"backlog"` // 0: they are idle. Else they have persistent sessions, come back when they are cut off, and send so many messages
	Base    int64  `json:"base"`    // Unix ms of the first reading; the next is a second later
}

// stormOver is the word for devices that they have nothing to come back for.
const stormOver = "over"

// devicesReport is what a process of devices says: first that all are connected, then that all have sent their backlog.
type devicesReport struct {
	Error string  `json:"error,omitempty"`
	Took  float64 `json:"took,omitempty"` // seconds
	// Of each device: when it was back and when all was acknowledged, Unix ns, and how often it tried.
	Back  []int64 `json:"back,omitempty"`
	Done  []int64 `json:"done,omitempty"`
	Tries []int   `json:"tries,omitempty"`
}

// benchDevices runs until standard input ends.
func benchDevices(in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	var cfg devicesConfig
	line, err := r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &cfg)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan struct{})
	go func() { // ends with the process
		defer cancel()
		for {
			word, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if word == stormOver+"\n" {
				close(over)
			}
		}
	}()
	say := json.NewEncoder(out).Encode
	if err := cfg.run(ctx, over, say); err != nil {
		return say(devicesReport{Error: err.Error()})
	}
	return nil
}

// connectingAtOnce is how many devices of a process connect at one time when there is no storm.
const connectingAtOnce = 16

func (cfg *devicesConfig) run(ctx context.Context, over <-chan struct{}, say func(any) error) error {
	devices := make([]benchDevice, cfg.Count)
	var roots *x509.CertPool
	if cfg.Roots != "" {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(cfg.Roots))
	}
	began := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, connectingAtOnce)
	for w := range errs {
		wg.Go(func() {
			for ctx.Err() == nil && errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= cfg.Count {
					return
				}
				d := &devices[i]
				if errs[w] = d.prepare(cfg, roots, cfg.First+i); errs[w] == nil {
					errs[w] = d.connect(ctx)
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := say(devicesReport{Took: time.Since(began).Seconds()}); err != nil || cfg.Backlog == 0 {
		<-ctx.Done()
		return err
	}
	errs = make([]error, cfg.Count)
	for i := range devices {
		wg.Go(func() { errs[i] = devices[i].storm(ctx, over) })
	}
	wg.Wait()
	report := devicesReport{}
	for i := range devices {
		d := &devices[i]
		report.Back = append(report.Back, d.back.UnixNano())
		report.Done = append(report.Done, d.done.UnixNano())
		report.Tries = append(report.Tries, d.tries)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	err := say(report)
	<-ctx.Done()
	return err
}

// A benchDevice is one device of a process of devices.
type benchDevice struct {
	cfg   *devicesConfig
	id    string
	from  net.TCPAddr
	tls   *tls.Config // nil: none
	conn  net.Conn
	sent  int // of the backlog, acknowledged or not
	acked int
	tries int
	back  time.Time // when it was connected again
	done  time.Time // when all was acknowledged
}

// prepare gives the device its name, an address, because one has 28,000 ports, and a certificate of its own: what others have in common
// costs neither side what real ones do.
func (d *benchDevice) prepare(cfg *devicesConfig, roots *x509.CertPool, n int) error {
	d.cfg, d.id = cfg, fmt.Sprintf("S%05d", n)
	d.from.IP = net.IPv4(127, 0, 0, byte(1+n/10_000))
	if roots == nil {
		return nil
	}
	der, key, err := benchSelfSigned(&x509.Certificate{Subject: pkix.Name{CommonName: d.id}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return err
	}
	d.tls = &tls.Config{
		RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	return nil
}

// connectPatience is how long a device waits for CONNACK: as long as Paho does.
const connectPatience = 30 * time.Second

// connect makes a connection and waits for CONNACK.
func (d *benchDevice) connect(ctx context.Context) error {
	dialer := net.Dialer{LocalAddr: &d.from, Timeout: connectPatience}
	conn, err := dialer.DialContext(ctx, "tcp", d.cfg.Addr)
	if err != nil {
		return err
	}
	if d.tls != nil {
		conn = tls.Client(conn, d.tls)
	}
	_ = conn.SetDeadline(time.Now().Add(connectPatience))
	if err := sayConnect(conn, conn, d.id, d.cfg.Backlog == 0); err != nil {
		conn.Close() //nolint:errcheck,gosec // already failed
		return fmt.Errorf("%s: %w", d.id, err)
	}
	d.conn = conn
	return nil
}

// Between two attempts of a device to come back. There is no chance in it: all do the same at the same time, which is the worst.
const (
	comeBackSoon = 100 * time.Millisecond
	comeBackMost = time.Second
)

// storm waits until the device is cut off, and then comes back and sends its backlog, however often that takes.
func (d *benchDevice) storm(ctx context.Context, over <-chan struct{}) error {
	_ = d.conn.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = d.conn.SetDeadline(time.Unix(1, 0)) })
	_, _ = d.conn.Read(make([]byte, 1))
	stop()
	pause := comeBackSoon
	for {
		_ = d.conn.Close()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.tries++
		err := d.connect(ctx)
		if err == nil {
			d.back = time.Now()
			pause = comeBackSoon
			if err = d.send(); err == nil {
				d.done = time.Now()
				return nil
			}
		}
		select {
		case <-time.After(pause):
		case <-over:
			return fmt.Errorf("%s is not back after %d attempts: %w", d.id, d.tries, err)
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, comeBackMost)
	}
}

// send sends what is not acknowledged of the backlog, in one write, and waits for the acknowledgements.
func (d *benchDevice) send() error {
	_ = d.conn.SetDeadline(time.Now().Add(time.Minute))
	off := benchOffsets()
	payload := []byte(benchLine[:len(benchLine)-1])
	copy(payload[off.vehicle-1:], d.id)
	copy(payload[off.time:], time.UnixMilli(d.cfg.Base).UTC().Format("2006-01-02T15:04:05.000"))
	topic := "fleet/" + d.id + "/telemetry"
	var b []byte
	for i := d.acked; i < d.cfg.Backlog; i++ {
		putTime(payload[off.time:], d.cfg.Base+int64(i)*1000)
		at := len(b)
		b = appendPublish(b, topic, uint16(i+1), payload) //nolint:gosec // a few
		if i < d.sent {
			b[at] |= 8 // DUP
		}
	}
	d.sent = d.cfg.Backlog
	if _, err := d.conn.Write(b); err != nil {
		return err
	}
	var ack [4]byte
	for d.acked < d.cfg.Backlog {
		if _, err := io.ReadFull(d.conn, ack[:]); err != nil {
			return err
		}
		if id := int(binary.BigEndian.Uint16(ack[2:])); ack[0] != 0x40 || id != d.acked+1 {
			return fmt.Errorf("got %x instead of the acknowledgement of message %d", ack, d.acked+1)
		}
		d.acked++
	}
	return nil
}

// runBenchDevices is the process's main.
func runBenchDevices() {
	if err := benchDevices(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "milepost bench: devices:", err)
		os.Exit(exitFailed)
	}
}
