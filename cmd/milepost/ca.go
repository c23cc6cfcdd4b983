package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/milepost/milepost/device"
)

const caUsage = `write one of
  milepost ca init [--name NAME] [--host HOST,…] [--url https://HOST:PORT]
  milepost ca show
  milepost ca export [--out FILE]
  milepost ca import --cert FILE [--key FILE [--replace]] [--name NAME]
  milepost ca forget NAME
  milepost ca server --host HOST,… [--url https://HOST:PORT]
each with --data DIR or --config FILE`

// runCA looks after the certificate authority's files. A running server reads them again within seconds.
func runCA(_ context.Context, e *env, args []string) error {
	fs := flags(e, "ca")
	dir := dataFlags(fs)
	name := fs.String("name", "", "init: name of the authority; import: name by which it is trusted")
	var hosts []string
	fs.Func("host", "names and addresses of this server, with commas or one by one, for its certificate; default: this machine's", func(s string) error {
		hosts = append(hosts, strings.Split(s, ",")...)
		return nil
	})
	url := fs.String("url", "", "public HTTPS address of this server; QR codes and certificates point to it")
	out := fs.String("out", "", "export: file; default: standard output")
	cert := fs.String("cert", "", "import: PEM file with the authority's certificate, and those above it")
	key := fs.String("key", "", "import: PEM file with its key, to issue by it; without one it is only trusted")
	replace := fs.Bool("replace", false, "import: retire the authority that issues now")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	verb, rest := first(rest)
	if len(rest) > 0 && verb != "forget" {
		return usagef("unexpected %q; %s", rest[0], caUsage)
	}
	cfg, err := dir()
	if err != nil {
		return err
	}
	caDir := filepath.Join(cfg.Data, "ca")
	info := device.Info{Name: *name, URL: *url, Hosts: hosts}
	if verb == "init" {
		a, err := device.InitAuthority(caDir, info, time.Now())
		if err != nil {
			return err
		}
		showCA(e.stdout, a)
		fmt.Fprintf(e.stdout, "\nDevices must trust %s. Its key, root.key, is needed only to make another issuer: keep it elsewhere if you like.\n", filepath.Join(caDir, "root.crt"))
		return nil
	}
	a, err := device.OpenAuthority(caDir)
	if err != nil {
		return err
	}
	switch verb {
	case "show":
		if len(a.Issuer()) == 0 && len(a.Trusted()) == 0 {
			return device.ErrNoAuthority
		}
		showCA(e.stdout, a)
		return nil
	case "export":
		if len(a.Roots()) == 0 {
			return device.ErrNoAuthority
		}
		pem := device.EncodeCertificates(a.Roots()...)
		if *out == "" {
			_, err := e.stdout.Write(pem)
			return err
		}
		return os.WriteFile(*out, pem, 0o644) //nolint:gosec // everybody may read it
	case "import":
		return importCA(e, a, info, *cert, *key, *replace)
	case "forget":
		if len(rest) != 1 {
			return usagef("which authority? %s", caUsage)
		}
		return a.Distrust(rest[0])
	case "server":
		if len(a.Issuer()) == 0 {
			return device.ErrNoAuthority
		}
		if err := a.SetServer(info.Hosts, *url, time.Now()); err != nil {
			return err
		}
		showCA(e.stdout, a)
		return nil
	}
	return usagef("%s", caUsage)
}

func first(args []string) (string, []string) {
	if len(args) == 0 {
		return "", nil
	}
	return args[0], args[1:]
}

func importCA(e *env, a *device.Authority, info device.Info, cert, key string, replace bool) error {
	if cert == "" {
		return usagef("which certificate? --cert FILE")
	}
	b, err := os.ReadFile(cert)
	if err != nil {
		return err
	}
	certs, err := device.ParseCertificates(b)
	if err != nil {
		return fmt.Errorf("%s: %w", cert, err)
	}
	if key == "" {
		name := cmp.Or(info.Name, strings.TrimSuffix(filepath.Base(cert), filepath.Ext(cert)))
		if err := a.Trust(name, certs, time.Now()); err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "%s is trusted as %q. Its devices are let in once they are enrolled; devices.just_in_time enrols them at their first connection.\n", certs[0].Subject, name)
		return nil
	}
	signer, err := device.ReadKey(key)
	if err != nil {
		return err
	}
	if info.Name == "" {
		info.Name = certs[0].Subject.CommonName
	}
	if err := a.ImportIssuer(certs, signer, info, replace, time.Now()); err != nil {
		return err
	}
	showCA(e.stdout, a)
	return nil
}

func showCA(w io.Writer, a *device.Authority) {
	show := func(what string, c *x509.Certificate) {
		fmt.Fprintf(w, "%-9s %s, until %s\n          sha256 %s\n", what, c.Subject, c.NotAfter.Format(time.DateOnly), device.FingerprintOf(c))
	}
	for i, c := range a.Issuer() {
		what := "issuer"
		if i > 0 {
			what = "root"
		}
		show(what, c)
	}
	if s := a.Server(); s != nil {
		show("server", s)
		fmt.Fprintf(w, "          for %s\n", strings.Join(a.Info().Hosts, ", "))
	}
	if u := a.Info().URL; u != "" {
		fmt.Fprintf(w, "address   %s\n", u)
	}
	for _, name := range slices.Sorted(maps.Keys(a.Trusted())) {
		show("trusted", a.Trusted()[name][0])
		fmt.Fprintf(w, "          as %s\n", name)
	}
}

// dataFlags adds --data and --config and returns what reads them.
func dataFlags(fs *flagSet) func() (*Config, error) {
	data := fs.String("data", "", "data directory; default: the configuration's")
	config := fs.String("config", "", "configuration file; without one, defaults")
	return func() (*Config, error) {
		cfg, err := loadConfig(*config)
		if err != nil {
			return nil, &usageError{err}
		}
		if *data != "" {
			cfg.Data = *data
		}
		if cfg.Data == "" {
			return nil, errors.New("no data directory: --data DIR")
		}
		return cfg, nil
	}
}
