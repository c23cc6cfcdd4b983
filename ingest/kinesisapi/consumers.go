package kinesisapi

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	maxConsumersCreating = 5
	listConsumersLimit   = 100
)

type (
	consumerOut struct {
		ConsumerName              string
		ConsumerARN               string
		ConsumerStatus            string
		ConsumerCreationTimestamp time.Time
		StreamARN                 string
	}
	registerOut         struct{ Consumer consumerOut }
	describeConsumerOut struct{ ConsumerDescription consumerOut }
	listConsumersOut    struct {
		Consumers []consumerOut
		NextToken string
	}
)

func (d *Door) consumerOut(streamName string, c *consumerMeta) consumerOut {
	return consumerOut{
		ConsumerName: c.Name, ConsumerARN: d.consumerARN(streamName, c), ConsumerStatus: c.Status,
		ConsumerCreationTimestamp: time.UnixMilli(c.Created),
	}
}

func (d *Door) registerConsumer(_ context.Context, c *call, in *registerInput) (any, error) {
	m, err := d.streamByARN(c, in.StreamARN)
	if err != nil {
		return nil, err
	}
	if err := checkTags(m.Name, d.cfg.Account, nil, in.Tags); err != nil {
		return nil, err
	}
	var out registerOut
	err = d.change(func(cat *catalog) error {
		m := cat.Streams[m.Name]
		switch {
		case m == nil || m.Status == deleting || m.Status == creating:
			return d.noStream(*in.StreamARN)
		case m.consumer(*in.ConsumerName) != nil:
			return faultf(typeInUse, "Consumer %s with stream %s under account %s already exists.", *in.ConsumerName, m.Name, d.cfg.Account)
		case len(m.Consumers) >= d.cfg.ConsumersPerStream:
			return faultf(typeLimit, "Stream %s under account %s has %d consumers, which is the limit.", m.Name, d.cfg.Account, len(m.Consumers))
		}
		busy := 0
		for i := range m.Consumers {
			if m.Consumers[i].Status == creating {
				busy++
			}
		}
		if busy >= maxConsumersCreating {
			return faultf(typeLimit, "No more than %d consumers of stream %s under account %s can be in the CREATING state at once.", maxConsumersCreating, m.Name, d.cfg.Account)
		}
		e := cat.edit(m.Name)
		k := consumerMeta{
			Name: *in.ConsumerName, Created: c.now.UnixMilli(), Status: creating, Until: c.now.Add(d.transition).UnixMilli(), Tags: maps.Clone(in.Tags),
		}
		out.Consumer = d.consumerOut(m.Name, &k)
		if d.transition == 0 {
			k.Status, k.Until = active, 0
		}
		e.Consumers = append(e.Consumers, k)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// findConsumer returns the consumer that a request means.
func (d *Door) findConsumer(c *call, streamARN, name, arn *string) (*streamMeta, *consumerMeta, error) {
	if arn == nil && (streamARN == nil || name == nil) {
		return nil, nil, invalidf("Must specify either ConsumerARN, or StreamARN and ConsumerName.")
	}
	if arn != nil {
		streamName, consumer, created, ok := d.parseARN(*arn)
		if !ok || consumer == "" {
			return nil, nil, d.noConsumer(*arn)
		}
		if err := d.access(c, *arn); err != nil {
			return nil, nil, err
		}
		m := d.catalog.Load().Streams[streamName]
		if m == nil {
			return nil, nil, d.noConsumer(*arn)
		}
		k := m.consumer(consumer)
		if k == nil || k.Created/1000 != created {
			return nil, nil, d.noConsumer(*arn)
		}
		return m, k, d.allow(c, m.live)
	}
	streamName, err := d.nameOf(nil, streamARN)
	if err != nil {
		return nil, nil, err
	}
	m := d.catalog.Load().Streams[streamName]
	var k *consumerMeta
	if m != nil {
		k = m.consumer(*name)
	}
	// IAM names the consumer's ARN as the resource of these operations; one that does not exist has none but the stream's.
	resource := d.streamARN(streamName)
	if k != nil {
		resource = d.consumerARN(streamName, k)
	}
	if err := d.access(c, resource); err != nil {
		return nil, nil, err
	}
	if k == nil {
		return nil, nil, faultf(typeNotFound, "Consumer %s, account %s, stream %s not found.", *name, d.cfg.Account, streamName)
	}
	return m, k, d.allow(c, m.live)
}

// Consumer finds an enhanced fan-out consumer of a stream, by its name or its ARN, and returns its ARN.
func (d *Door) Consumer(streamName, consumer string) (string, error) {
	name, created, byARN := consumer, int64(0), false
	if of, n, at, ok := d.parseARN(consumer); ok && n != "" {
		if of != streamName {
			return "", fmt.Errorf("consumer %s is not of stream %s", consumer, streamName)
		}
		name, created, byARN = n, at, true
	}
	m := d.catalog.Load().Streams[streamName]
	if m == nil {
		return "", d.noStream(streamName)
	}
	k := m.consumer(name)
	if k == nil || byARN && k.Created/1000 != created {
		return "", fmt.Errorf("stream %s has no consumer %s: register it, or leave consumer out", streamName, consumer)
	}
	return d.consumerARN(streamName, k), nil
}

func (d *Door) noConsumer(arn string) error {
	return faultf(typeNotFound, "Consumer %s, account %s not found.", arn, d.cfg.Account)
}

func (d *Door) deregisterConsumer(_ context.Context, c *call, in *consumerInput) (any, error) {
	m, k, err := d.findConsumer(c, in.StreamARN, in.ConsumerName, in.ConsumerARN)
	if err != nil {
		return nil, err
	}
	err = d.change(func(cat *catalog) error {
		if cat.Streams[m.Name] == nil || cat.Streams[m.Name].consumer(k.Name) == nil {
			return nil
		}
		e := cat.edit(m.Name)
		if d.transition == 0 {
			e.Consumers = slices.DeleteFunc(e.Consumers, func(c consumerMeta) bool { return c.Name == k.Name })
			return nil
		}
		gone := e.consumer(k.Name)
		gone.Status, gone.Until = deleting, c.now.Add(d.transition).UnixMilli()
		return nil
	})
	if err != nil {
		return nil, err
	}
	arn := d.consumerARN(m.Name, k)
	m.live.endSubscriptions(&arn, d.noConsumer(arn))
	return nil, nil
}

func (d *Door) describeConsumer(_ context.Context, c *call, in *consumerInput) (any, error) {
	m, k, err := d.findConsumer(c, in.StreamARN, in.ConsumerName, in.ConsumerARN)
	if err != nil {
		return nil, err
	}
	out := describeConsumerOut{d.consumerOut(m.Name, k)}
	out.ConsumerDescription.StreamARN = d.streamARN(m.Name)
	return out, nil
}

func (d *Door) listConsumers(_ context.Context, c *call, in *listConsumersInput) (any, error) {
	m, err := d.streamByARN(c, in.StreamARN)
	if err != nil {
		return nil, err
	}
	if t := in.StreamCreationTimestamp; t != nil && t.Unix() != m.Created/1000 {
		return nil, faultf(typeNotFound, "Stream %s under account %s with creation timestamp %s not found.", m.Name, d.cfg.Account, amazonTime(*t))
	}
	after := ""
	if in.NextToken != nil {
		p, err := d.tokens.readPage(*in.NextToken, "ListStreamConsumers", c.now)
		if err != nil {
			return nil, err
		}
		if p.Stream != m.Name || p.Created != m.Created {
			return nil, invalidf("NextToken is of another stream.")
		}
		after = p.After
	}
	list := slices.Clone(m.Consumers)
	slices.SortFunc(list, func(a, b consumerMeta) int { return strings.Compare(a.Name, b.Name) })
	out := listConsumersOut{Consumers: []consumerOut{}}
	limit := int(value(in.MaxResults, listConsumersLimit))
	for i := range list {
		if list[i].Name <= after {
			continue
		}
		if len(out.Consumers) == limit {
			out.NextToken = d.tokens.page(page{
				Op: "ListStreamConsumers", Stream: m.Name, Created: m.Created, After: list[i-1].Name, At: c.now.UnixMilli(),
			})
			break
		}
		out.Consumers = append(out.Consumers, d.consumerOut(m.Name, &list[i]))
	}
	return out, nil
}
