package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/milepost/milepost/ingest/feed"
	"github.com/milepost/milepost/ingest/format"
	"github.com/milepost/milepost/internal/conf"
)

// FormatsConfig is what senders of other formats need.
type FormatsConfig struct {
	OwnTracksKeys map[string]string `yaml:"owntracks_keys" doc:"encryption keys of OwnTracks apps, by vehicle"`
	VehicleTags   []string          `yaml:"vehicle_tags" default:"[vehicle_id, vehicle, truck_id, truck, name, device_id, device, host]" doc:"tags of line protocol that may name the vehicle, first come first served"`
}

// FeedConfig is a feed that is fetched.
type FeedConfig struct {
	URL     string            `yaml:"url" doc:"where it is, http or https"`
	Format  string            `yaml:"format" default:"gtfs-rt" doc:"a format of docs/formats.md"`
	Every   conf.Duration     `yaml:"every" default:"15s" doc:"how often to fetch it"`
	Headers map[string]string `yaml:"headers" doc:"sent with each request: an API key"`
}

// formats makes the converters; each keeps what it must remember, so the doors share one set.
func (c *Config) formats() *format.Set {
	return format.New(format.Config{OwnTracksKeys: c.Formats.OwnTracksKeys, VehicleTags: c.Formats.VehicleTags})
}

// feeds returns the configured feeds, checked.
func (c *Config) feeds(formats *format.Set) ([]feed.Source, error) {
	var out []feed.Source
	for _, name := range slices.Sorted(maps.Keys(c.Feeds)) {
		f := c.Feeds[name]
		conv, err := formats.Converter(f.Format)
		if err != nil {
			return nil, fmt.Errorf("feeds.%s.format: %w", name, err)
		}
		out = append(out, feed.Source{Name: name, URL: f.URL, Every: time.Duration(f.Every), Headers: f.Headers, Format: conv})
	}
	if _, err := feed.New(feed.Config{Sources: slices.Clone(out)}); err != nil {
		return nil, err
	}
	return out, nil
}

// openFeeds starts fetching. It is a door: closeDoors ends it.
func (s *server) openFeeds(ctx context.Context) error {
	sources, err := s.cfg.feeds(s.formats)
	if err != nil || len(sources) == 0 {
		return err
	}
	puller, err := feed.New(feed.Config{Sources: sources, Admit: s.admit, Log: s.log, Metrics: s.reg})
	if err != nil {
		return err
	}
	s.fetched, s.fetching = context.WithCancel(context.WithoutCancel(ctx))
	s.doors.Go(func() { puller.Run(s.fetched) }) // closeDoors waits
	s.onFailure(s.closeFeeds)
	return nil
}

// closeFeeds ends feeds and bridges.
func (s *server) closeFeeds() error {
	s.fetching()
	s.doors.Wait()
	return nil
}
