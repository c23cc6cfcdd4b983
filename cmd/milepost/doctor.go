package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/milepost/milepost/device"
)

// runDoctor says why a device cannot get in, or why nothing is seen of it.
func runDoctor(ctx context.Context, e *env, args []string) error {
	fs := flags(e, "doctor")
	open := apiFlags(fs)
	asJSON := fs.Bool("json", false, "print the API's answer")
	rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(rest) != 2 || rest[0] != "device" {
		return usagef("write: milepost doctor device ID --url http://HOST:PORT (the running server has seen the most; --data DIR works on a stopped one)")
	}
	api, err := open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(doctor(ctx, e, api, rest[1], *asJSON), api.close())
}

func doctor(ctx context.Context, e *env, api *deviceAPI, id string, asJSON bool) error {
	var d device.Diagnosis
	if err := api.call(ctx, http.MethodGet, "/v1/devices/"+url.PathEscape(id)+"/doctor", nil, &d); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(e.stdout).Encode(d)
	}
	fmt.Fprintf(e.stdout, "%s\n(%s)\n", cell(d.Summary), d.Verdict)
	part := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(e.stdout, "\n%s\n", title)
		}
		for _, l := range lines {
			fmt.Fprintf(e.stdout, "  - %s\n", cell(l))
		}
	}
	part("What to do", d.Mend)
	part("What was seen", d.Evidence)
	part("Worth knowing", d.Notes)
	return nil
}
