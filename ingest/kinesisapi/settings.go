package kinesisapi

import (
	"context"
	"slices"
	"time"

	"github.com/milepost/milepost/stream/seglog"
)

const (
	onDemandLimit  = 50
	maxModeChanges = 2 // UpdateStreamMode in 24 h
	maxWarmMiB     = 10_240
	commitmentDays = 30
)

type (
	limitsOut struct {
		ShardLimit               int64
		OpenShardCount           int64
		OnDemandStreamCount      int64
		OnDemandStreamCountLimit int64
	}
	monitoringOut struct {
		StreamName               string
		StreamARN                string
		CurrentShardLevelMetrics []string
		DesiredShardLevelMetrics []string
	}
	updateWarmOut struct {
		StreamName     string
		StreamARN      string
		WarmThroughput warmOut
	}
	accountOut    struct{ MinimumThroughputBillingCommitment commitmentOut }
	commitmentOut struct {
		Status               string
		StartedAt            time.Time
		EndedAt              time.Time
		EarliestAllowedEndAt time.Time
	}
)

func (d *Door) describeLimits(_ context.Context, c *call, _ *noInput) (any, error) {
	if err := d.access(c, "*"); err != nil {
		return nil, err
	}
	if err := d.allow(c, nil); err != nil {
		return nil, err
	}
	out := limitsOut{ShardLimit: int64(d.cfg.ShardLimit), OpenShardCount: int64(d.openShardCount()), OnDemandStreamCountLimit: onDemandLimit}
	for _, m := range d.catalog.Load().Streams {
		if m.Mode == onDemand {
			out.OnDemandStreamCount++
		}
	}
	return out, nil
}

func (c *commitment) out() commitmentOut {
	ms := func(t int64) time.Time {
		if t == 0 {
			return time.Time{}
		}
		return time.UnixMilli(t)
	}
	out := commitmentOut{Status: c.Status, StartedAt: ms(c.Started), EndedAt: ms(c.Ended)}
	if out.Status == "" {
		out.Status = "DISABLED"
	}
	if c.Status == "ENABLED" {
		out.EarliestAllowedEndAt = time.UnixMilli(c.Started).AddDate(0, 0, commitmentDays)
	}
	return out
}

func (d *Door) describeAccount(_ context.Context, c *call, _ *noInput) (any, error) {
	if err := d.access(c, "*"); err != nil {
		return nil, err
	}
	if err := d.allow(c, nil); err != nil {
		return nil, err
	}
	cm := d.catalog.Load().Commitment
	return accountOut{cm.out()}, nil
}

// updateAccount keeps the commitment as it was asked for. It costs nothing here, so ending it is not held up.
func (d *Door) updateAccount(_ context.Context, c *call, in *updateAccountInput) (any, error) {
	if err := d.access(c, "*"); err != nil {
		return nil, err
	}
	if err := d.allow(c, nil); err != nil {
		return nil, err
	}
	var out accountOut
	err := d.change(func(cat *catalog) error {
		now, want := c.now.UnixMilli(), *in.MinimumThroughputBillingCommitment.Status
		switch want {
		case cat.Commitment.Status:
		case "ENABLED":
			cat.Commitment = commitment{Status: want, Started: now}
		default:
			cat.Commitment = commitment{Status: want, Started: cat.Commitment.Started, Ended: now}
		}
		out.MinimumThroughputBillingCommitment = cat.Commitment.out()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (d *Door) increaseRetention(ctx context.Context, c *call, in *retentionInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	want := *in.RetentionPeriodHours
	if err := checkRetention(want); err != nil {
		return nil, err
	}
	if err := d.mustBeActive(m); err != nil {
		return nil, err
	}
	if have := d.retentionHours(m); want < have {
		return nil, invalidf("Requested retention period (%d hours) for stream %s can not be shorter than existing retention period (%d hours). Use DecreaseRetentionPeriod API.", want, m.Name, have)
	}
	return nil, d.setRetention(ctx, c, m, want)
}

func (d *Door) decreaseRetention(ctx context.Context, c *call, in *retentionInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	want := *in.RetentionPeriodHours
	if err := checkRetention(want); err != nil {
		return nil, err
	}
	if err := d.mustBeActive(m); err != nil {
		return nil, err
	}
	if have := d.retentionHours(m); want > have {
		return nil, invalidf("Requested retention period (%d hours) for stream %s can not be longer than existing retention period (%d hours). Use IncreaseRetentionPeriod API.", want, m.Name, have)
	}
	return nil, d.setRetention(ctx, c, m, want)
}

func checkRetention(hours int64) error {
	switch {
	case hours < minRetentionHours:
		return invalidf("Minimum allowed retention period is %d hours. Requested retention period (%d hours) is too short.", minRetentionHours, hours)
	case hours > maxRetentionHours:
		return invalidf("Maximum allowed retention period is %d hours. Requested retention period (%d hours) is too long.", maxRetentionHours, hours)
	}
	return nil
}

func (d *Door) setRetention(ctx context.Context, c *call, m *streamMeta, hours int64) error {
	if err := d.updateFor(m.Name, c.now, func(*streamMeta) error { return nil }); err != nil {
		return err
	}
	return d.cfg.Store.Update(context.WithoutCancel(ctx), m.Name, func(s *seglog.StreamConfig) { s.Retention = time.Duration(hours) * time.Hour })
}

// updateFor changes an ACTIVE stream and takes it through UPDATING.
func (d *Door) updateFor(name string, now time.Time, f func(*streamMeta) error) error {
	return d.changeStream(name, func(e *streamMeta) error {
		if err := f(e); err != nil {
			return err
		}
		d.during(e, updating, now)
		return nil
	})
}

//nolint:gochecknoglobals // a table
var shardMetrics = []string{
	"IncomingBytes", "IncomingRecords", "IteratorAgeMilliseconds", "OutgoingBytes", "OutgoingRecords",
	"ReadProvisionedThroughputExceeded", "WriteProvisionedThroughputExceeded",
}

func (d *Door) enableMonitoring(_ context.Context, c *call, in *monitoringInput) (any, error) {
	return d.monitor(c, in, func(have, named []string) []string { return append(have, named...) })
}

func (d *Door) disableMonitoring(_ context.Context, c *call, in *monitoringInput) (any, error) {
	return d.monitor(c, in, func(have, named []string) []string {
		return slices.DeleteFunc(have, func(s string) bool { return slices.Contains(named, s) })
	})
}

// monitor keeps which shard-level metrics are on. Milepost serves them all in any case, see metrics.
func (d *Door) monitor(c *call, in *monitoringInput, f func(have, named []string) []string) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	named := in.ShardLevelMetrics
	for _, n := range named {
		if n != "ALL" && !slices.Contains(shardMetrics, n) {
			return nil, faultf(typeValidation, "1 validation error detected: Value '[%s]' at 'shardLevelMetrics' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [IncomingBytes, IncomingRecords, OutgoingBytes, OutgoingRecords, WriteProvisionedThroughputExceeded, ReadProvisionedThroughputExceeded, IteratorAgeMilliseconds, ALL]]", n)
		}
	}
	if slices.Contains(named, "ALL") {
		named = shardMetrics
	}
	out := monitoringOut{StreamName: m.Name, StreamARN: d.streamARN(m.Name)}
	err = d.updateFor(m.Name, c.now, func(e *streamMeta) error {
		out.CurrentShardLevelMetrics = append([]string{}, e.Metrics...)
		e.Metrics = f(slices.Clone(e.Metrics), named)
		slices.Sort(e.Metrics)
		e.Metrics = slices.Compact(e.Metrics)
		out.DesiredShardLevelMetrics = append([]string{}, e.Metrics...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// startEncryption keeps the key's name and reports it. Records are not encrypted by it: see docs/kinesis.md.
func (d *Door) startEncryption(_ context.Context, c *call, in *encryptionInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	return nil, d.updateFor(m.Name, c.now, func(e *streamMeta) error {
		if *in.EncryptionType != kms {
			return invalidf("EncryptionType must be %s.", kms)
		}
		e.Key = *in.KeyId
		return nil
	})
}

func (d *Door) stopEncryption(_ context.Context, c *call, in *encryptionInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	return nil, d.updateFor(m.Name, c.now, func(e *streamMeta) error {
		if *in.EncryptionType != kms {
			return invalidf("EncryptionType must be %s.", kms)
		}
		e.Key = ""
		return nil
	})
}

func (d *Door) updateMaxRecordSize(ctx context.Context, c *call, in *updateSizeInput) (any, error) {
	m, err := d.streamByARN(c, in.StreamARN)
	if err != nil {
		return nil, err
	}
	if err := d.updateFor(m.Name, c.now, func(*streamMeta) error { return nil }); err != nil {
		return nil, err
	}
	return nil, d.cfg.Store.Update(context.WithoutCancel(ctx), m.Name, func(s *seglog.StreamConfig) {
		s.MaxRecordBytes = int(*in.MaxRecordSizeInKiB << 10)
	})
}

func (d *Door) updateMode(_ context.Context, c *call, in *updateModeInput) (any, error) {
	m, err := d.streamByARN(c, in.StreamARN)
	if err != nil {
		return nil, err
	}
	return nil, d.updateFor(m.Name, c.now, func(e *streamMeta) error {
		mode := *in.StreamModeDetails.StreamMode
		if e.ModeChanges = within(e.ModeChanges, c.now); d.cfg.Throttle == ThrottleAWS && len(e.ModeChanges) >= maxModeChanges {
			return faultf(typeLimit, "UpdateStreamMode can be called %d times in a rolling 24-hour period: stream %s under account %s.", maxModeChanges, e.Name, d.cfg.Account)
		}
		if in.WarmThroughputMiBps != nil && mode != onDemand {
			return invalidf("WarmThroughputMiBps can be specified for streams with StreamMode %s only.", onDemand)
		}
		e.ModeChanges = append(e.ModeChanges, c.now.UnixMilli())
		e.Mode, e.WarmMiB = mode, value(in.WarmThroughputMiBps, 0)
		return d.warm(e)
	})
}

// warm reshards a stream so that it takes what it is to be warm for.
func (d *Door) warm(e *streamMeta) error {
	if e.WarmMiB > maxWarmMiB {
		return invalidf("WarmThroughputMiBps must not exceed %d.", maxWarmMiB)
	}
	have := e.live.log.Config().Shards
	want := min(int(e.WarmMiB), maxOnDemand)
	if e.Mode != onDemand || want <= have {
		return nil
	}
	e.Target = want
	return d.roomForShards(want - have)
}

func (d *Door) updateWarm(_ context.Context, c *call, in *updateWarmInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	out := updateWarmOut{StreamName: m.Name, StreamARN: d.streamARN(m.Name)}
	err = d.updateFor(m.Name, c.now, func(e *streamMeta) error {
		if e.Mode != onDemand {
			return invalidf("WarmThroughputMiBps can be specified for streams with StreamMode %s only.", onDemand)
		}
		out.WarmThroughput = warmOut{TargetMiBps: *in.WarmThroughputMiBps, CurrentMiBps: max(e.WarmMiB, int64(e.live.log.Config().Shards))}
		e.WarmMiB = *in.WarmThroughputMiBps
		return d.warm(e)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// updateDistribution keeps the strategy. AUTO lets AWS spread records that have no order; here keys decide in both.
func (d *Door) updateDistribution(_ context.Context, c *call, in *updateDistributionInput) (any, error) {
	m, err := d.streamByARN(c, in.StreamARN)
	if err != nil {
		return nil, err
	}
	return nil, d.updateFor(m.Name, c.now, func(e *streamMeta) error {
		if e.Mode != onDemand {
			return invalidf("RecordDistributionStrategy can be specified for streams with StreamMode %s only.", onDemand)
		}
		e.Distribution = *in.RecordDistributionStrategy
		return nil
	})
}
