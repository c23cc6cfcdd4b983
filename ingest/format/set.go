package format

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Config is what formats need to know.
type Config struct {
	OwnTracksKeys map[string]string // passphrases of OwnTracks senders that encrypt, by vehicle
	VehicleTags   []string          // tags of line protocol that may name the vehicle; nil: DefaultVehicleTags
}

// A Set holds one converter of each format. It is safe for concurrent use.
type Set struct{ all map[string]Converter }

// New returns all formats.
func New(cfg Config) *Set {
	return &Set{map[string]Converter{
		"owntracks": OwnTracks{Key: func(vehicle string) string { return cfg.OwnTracksKeys[vehicle] }},
		"osmand":    OsmAnd{},
		"traccar":   TraccarForward{},
		"overland":  Overland{},
		"torque":    &Torque{},
		"gtfs-rt":   &GTFSRealtime{},
		"influx":    Influx{VehicleTags: cfg.VehicleTags},
		"tesla":     Tesla{},
		"vss":       VSS{},
		"sparkplug": &Sparkplug{},
	}}
}

// Names lists the formats in alphabetical order.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.all)) }

// Converter returns a format by name; the error lists the names there are.
func (s *Set) Converter(name string) (Converter, error) {
	if c, ok := s.all[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("format %q is unknown: use %s", clip(name), strings.Join(s.Names(), ", "))
}
