package mqtt

import (
	"fmt"
	"strings"

	"github.com/milepost/milepost/telemetry"
)

// vehicleLevel stands for the vehicle's id in a pattern.
const vehicleLevel = "{vehicle}"

// A pattern is a topic mapping taken apart: levels that must be equal, "+" for any one, "{vehicle}" for the vehicle's id.
type pattern []string

func parsePattern(s string) (pattern, error) {
	if s == "" {
		return nil, fmt.Errorf("mqtt topic mapping is empty: write one like %q", DefaultTopic)
	}
	p := pattern(strings.Split(s, "/"))
	vehicles := 0
	for _, level := range p {
		switch {
		case level == vehicleLevel:
			vehicles++
		case level == "+":
		case strings.ContainsAny(level, "+#{}"):
			return nil, fmt.Errorf("mqtt topic mapping %q: level %q: use %s, + or plain text", s, level, vehicleLevel)
		}
	}
	if vehicles > 1 {
		return nil, fmt.Errorf("mqtt topic mapping %q names the vehicle twice", s)
	}
	if strings.HasPrefix(p[0], "$") {
		return nil, fmt.Errorf("mqtt topic mapping %q: topics that begin with $ belong to the broker", s)
	}
	return p, nil
}

// match tells whether the topic is the pattern's, and the vehicle it names; "" if the pattern names none. It allocates nothing.
func (p pattern) match(topic string) (vehicle string, ok bool) {
	for i, want := range p {
		level, rest, more := strings.Cut(topic, "/")
		if more == (i == len(p)-1) {
			return "", false // more levels than the pattern, or fewer
		}
		switch want {
		case vehicleLevel:
			vehicle = level
			if vehicle == "" {
				return "", false
			}
		case "+":
		default:
			if level != want {
				return "", false
			}
		}
		topic = rest
	}
	return vehicle, true
}

// owns tells whether filter lies below the part of the pattern that ends with this vehicle's id.
func (p pattern) owns(filter, vehicle string) bool {
	for _, want := range p {
		level, rest, more := strings.Cut(filter, "/")
		if want == vehicleLevel {
			return level == vehicle && more
		}
		if level != want || !more {
			return false
		}
		filter = rest
	}
	return false
}

type patterns []pattern

func parsePatterns(topics []string) (patterns, error) {
	var ps patterns
	for _, t := range topics {
		p, err := parsePattern(t)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func (ps patterns) match(topic string) (vehicle string, ok bool) {
	for _, p := range ps {
		if vehicle, ok = p.match(topic); ok {
			return vehicle, true
		}
	}
	return "", false
}

func (ps patterns) owns(filter, vehicle string) bool {
	if telemetry.CheckVehicle(vehicle) != nil { // or a client id with wildcards would own more than one
		return false
	}
	for _, p := range ps {
		if p.owns(filter, vehicle) {
			return true
		}
	}
	return false
}
