package kinesisapi

import (
	"context"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/milepost/milepost/ingest/kinesisapi/policy"
)

type (
	tagOut struct {
		Key   string
		Value string `w:"keep"`
	}
	listTagsOut struct {
		Tags        []tagOut
		HasMoreTags bool
	}
	listResourceTagsOut struct{ Tags []tagOut }
	policyOut           struct{ Policy string }
)

// checkTags tests the tags that a resource would have.
func checkTags(name, account string, have, add map[string]string) error {
	for k, v := range add {
		for _, r := range k + v {
			if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsSpace(r) && !strings.ContainsRune("_.:/=+-@%", r) {
				return invalidf("Some tags contain invalid characters. Valid characters: Unicode letters, digits, white space, _ . / = + - %% @ :.")
			}
		}
		if strings.HasPrefix(strings.ToLower(k), "aws:") {
			return invalidf("Tag keys beginning with aws: are reserved.")
		}
	}
	all := maps.Clone(have)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, add)
	if len(all) > maxTags {
		return invalidf("Failed to add tags to stream %s under account %s because a given stream cannot have more than %d tags associated with it.", name, account, maxTags)
	}
	return nil
}

func sortedTags(tags map[string]string) []tagOut {
	out := make([]tagOut, 0, len(tags))
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, tagOut{k, tags[k]})
	}
	return out
}

func (d *Door) addTags(_ context.Context, c *call, in *addTagsInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	return nil, d.editTags(m.Name, nil, in.Tags, nil)
}

func (d *Door) removeTags(_ context.Context, c *call, in *removeTagsInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	return nil, d.editTags(m.Name, nil, nil, in.TagKeys)
}

// editTags changes the tags of a stream, or of one of its consumers.
func (d *Door) editTags(name string, k *consumerMeta, add map[string]string, remove []string) error {
	return d.change(func(cat *catalog) error {
		if cat.Streams[name] == nil {
			return d.noStream(name)
		}
		e := cat.edit(name)
		tags := &e.Tags
		if k != nil {
			now := e.consumer(k.Name)
			if now == nil {
				return d.noConsumer(d.consumerARN(name, k))
			}
			now.Tags = maps.Clone(now.Tags)
			tags = &now.Tags
		}
		if err := checkTags(name, d.cfg.Account, *tags, add); err != nil {
			return err
		}
		if *tags == nil {
			*tags = map[string]string{}
		}
		maps.Copy(*tags, add)
		for _, key := range remove {
			delete(*tags, key)
		}
		return nil
	})
}

const listTagsLimit = 50

func (d *Door) listTags(_ context.Context, c *call, in *listTagsInput) (any, error) {
	m, err := d.stream(c, in.streamRef)
	if err != nil {
		return nil, err
	}
	out := listTagsOut{Tags: []tagOut{}}
	limit := int(value(in.Limit, listTagsLimit))
	for _, t := range sortedTags(m.Tags) {
		if in.ExclusiveStartTagKey != nil && t.Key <= *in.ExclusiveStartTagKey {
			continue
		}
		if len(out.Tags) == limit {
			out.HasMoreTags = true
			break
		}
		out.Tags = append(out.Tags, t)
	}
	return out, nil
}

// resource finds the stream or consumer that an ARN names.
func (d *Door) resource(c *call, arn string) (*streamMeta, *consumerMeta, error) {
	name, consumer, created, ok := d.parseARN(arn)
	if !ok {
		return nil, nil, faultf(typeNotFound, "Resource %s not found.", arn)
	}
	if err := d.access(c, arn); err != nil {
		return nil, nil, err
	}
	m, err := d.find(name)
	if err != nil {
		return nil, nil, err
	}
	if err := d.allow(c, m.live); err != nil {
		return nil, nil, err
	}
	if consumer == "" {
		return m, nil, nil
	}
	k := m.consumer(consumer)
	if k == nil || k.Created/1000 != created {
		return nil, nil, d.noConsumer(arn)
	}
	return m, k, nil
}

func (d *Door) tagResource(_ context.Context, c *call, in *tagResourceInput) (any, error) {
	m, k, err := d.resource(c, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	return nil, d.editTags(m.Name, k, in.Tags, nil)
}

func (d *Door) untagResource(_ context.Context, c *call, in *untagResourceInput) (any, error) {
	m, k, err := d.resource(c, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	return nil, d.editTags(m.Name, k, nil, in.TagKeys)
}

func (d *Door) listResourceTags(_ context.Context, c *call, in *resourceInput) (any, error) {
	m, k, err := d.resource(c, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	tags := m.Tags
	if k != nil {
		tags = k.Tags
	}
	return listResourceTagsOut{sortedTags(tags)}, nil
}

// setPolicy replaces the policy of a stream or consumer; "" removes it.
func (d *Door) setPolicy(name string, k *consumerMeta, doc string) error {
	return d.change(func(cat *catalog) error {
		if cat.Streams[name] == nil {
			return d.noStream(name)
		}
		e := cat.edit(name)
		p := &e.Policy
		if k != nil {
			now := e.consumer(k.Name)
			if now == nil {
				return d.noConsumer(d.consumerARN(name, k))
			}
			p = &now.Policy
		}
		if doc == "" && *p == "" {
			return faultf(typeNotFound, "No resource policy found for stream %s under account %s.", name, d.cfg.Account)
		}
		*p = doc
		return nil
	})
}

func (d *Door) putPolicy(_ context.Context, c *call, in *putPolicyInput) (any, error) {
	m, k, err := d.resource(c, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	if _, err := policy.Parse([]byte(*in.Policy), d.cfg.Account); err != nil {
		return nil, invalidf("%v", err)
	}
	return nil, d.setPolicy(m.Name, k, *in.Policy)
}

func (d *Door) deletePolicy(_ context.Context, c *call, in *resourceInput) (any, error) {
	m, k, err := d.resource(c, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	return nil, d.setPolicy(m.Name, k, "")
}

func (d *Door) getPolicy(_ context.Context, c *call, in *resourceInput) (any, error) {
	m, k, err := d.resource(c, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	doc := m.Policy
	if k != nil {
		doc = k.Policy
	}
	if doc == "" {
		doc = "{}"
	}
	return policyOut{doc}, nil
}
