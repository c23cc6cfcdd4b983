// Package policy decides requests by policies in IAM's JSON form: Version, Statement, Effect, Action, NotAction, Resource,
// NotResource, and for policies on resources Principal and NotPrincipal. An explicit Deny wins, and what nothing allows is denied.
//
// A Condition is refused when the policy is parsed: ignoring one would allow more than its author meant.
//
// A resource's account may be written as AWS' guides print it, account-id or 123456789012's placeholder accountId: it then means
// the door's own account, so that a policy copied from a guide works as written.
package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// MaxBytes is the longest policy that is read.
const MaxBytes = 20 << 10

// A Policy is a parsed document. The zero value allows nothing.
type Policy struct{ statements []statement }

type statement struct {
	allow         bool
	actions       []string // lower case patterns
	notActions    bool
	resources     []string
	notResources  bool
	principals    []string
	notPrincipals bool
	hasPrincipal  bool
}

// A Decision is what a policy says about one request.
type Decision uint8

// The decisions. None means that no statement matched.
const (
	None Decision = iota
	Allow
	Deny
)

// many is a string or a list of strings.
type many []string

// UnmarshalJSON implements json.Unmarshaler.
func (m *many) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*m = many{""}
		return json.Unmarshal(b, &(*m)[0])
	}
	return json.Unmarshal(b, (*[]string)(m))
}

type principal []string

// UnmarshalJSON implements json.Unmarshaler.
func (p *principal) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*p = principal{""}
		return json.Unmarshal(b, &(*p)[0])
	}
	var byKind map[string]many
	if err := json.Unmarshal(b, &byKind); err != nil {
		return err
	}
	for kind, names := range byKind {
		if kind == "AWS" {
			*p = append(*p, names...)
		} else if kind != "Service" && kind != "Federated" && kind != "CanonicalUser" {
			return fmt.Errorf("unknown kind of principal %q", kind)
		}
	}
	return nil
}

type document struct {
	Version   string
	Id        string
	Statement statements
}

type statements []rawStatement

type rawStatement struct {
	Sid          string
	Effect       string
	Action       many
	NotAction    many
	Resource     many
	NotResource  many
	Principal    principal
	NotPrincipal principal
	Condition    json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *statements) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return strict(b, (*[]rawStatement)(s))
	}
	*s = make(statements, 1)
	return strict(b, &(*s)[0])
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// Parse reads a document. Account replaces the placeholder account-id in resources and principals.
func Parse(doc []byte, account string) (*Policy, error) {
	if len(doc) > MaxBytes {
		return nil, fmt.Errorf("policy is longer than %d bytes", MaxBytes)
	}
	if !json.Valid(doc) {
		return nil, errors.New("policy is not JSON")
	}
	var d document
	if err := strict(doc, &d); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if d.Version != "" && d.Version != "2012-10-17" && d.Version != "2008-10-17" {
		return nil, fmt.Errorf("policy version %q: use 2012-10-17", d.Version)
	}
	if len(d.Statement) == 0 {
		return nil, errors.New("policy has no Statement")
	}
	p := &Policy{}
	for i := range d.Statement {
		s, err := d.Statement[i].compile(account)
		if err != nil {
			return nil, fmt.Errorf("policy statement %d: %w", i+1, err)
		}
		p.statements = append(p.statements, s)
	}
	return p, nil
}

func (r *rawStatement) compile(account string) (statement, error) {
	s := statement{allow: r.Effect == "Allow"}
	switch {
	case r.Effect != "Allow" && r.Effect != "Deny":
		return s, fmt.Errorf("effect %q: use Allow or Deny", r.Effect)
	case (len(r.Action) == 0) == (len(r.NotAction) == 0):
		return s, errors.New("give either Action or NotAction")
	case len(r.Resource) > 0 && len(r.NotResource) > 0:
		return s, errors.New("give Resource or NotResource, not both")
	case len(r.Principal) > 0 && len(r.NotPrincipal) > 0:
		return s, errors.New("give Principal or NotPrincipal, not both")
	case len(r.Condition) > 0 && string(r.Condition) != "{}" && string(r.Condition) != "null":
		return s, errors.New("a Condition is not supported: split the statement by action and resource instead")
	}
	s.notActions = len(r.NotAction) > 0
	for _, a := range append(r.Action, r.NotAction...) {
		if a != "*" && !strings.Contains(a, ":") {
			return s, fmt.Errorf("action %q: write it as kinesis:%s", a, a)
		}
		s.actions = append(s.actions, strings.ToLower(a))
	}
	s.notResources = len(r.NotResource) > 0
	for _, a := range append(r.Resource, r.NotResource...) {
		if a != "*" && !strings.HasPrefix(a, "arn:") && !strings.HasPrefix(a, "*") {
			return s, fmt.Errorf("resource %q: write an ARN or *", a)
		}
		s.resources = append(s.resources, withAccount(a, account))
	}
	s.notPrincipals = len(r.NotPrincipal) > 0
	s.hasPrincipal = s.notPrincipals || r.Principal != nil
	for _, a := range append(r.Principal, r.NotPrincipal...) {
		s.principals = append(s.principals, withAccount(a, account))
	}
	return s, nil
}

// withAccount puts the account in the place of the guides' placeholder.
func withAccount(arn, account string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) == 6 && (parts[4] == "account-id" || parts[4] == "accountId" || parts[4] == "account_id") {
		parts[4] = account
		return strings.Join(parts, ":")
	}
	return arn
}

// Decide tells what the policy says about an action ("kinesis:PutRecord") on a resource's ARN, or "*" for actions without one.
func (p *Policy) Decide(action, resource string) Decision {
	return p.decide(action, resource, nil)
}

// DecideFor is Decide for a policy attached to a resource: who is the caller's ARN. A statement without a Principal matches
// nobody.
func (p *Policy) DecideFor(who, action, resource string) Decision {
	return p.decide(action, resource, &who)
}

func (p *Policy) decide(action, resource string, who *string) Decision {
	if p == nil {
		return None
	}
	action = strings.ToLower(action)
	d := None
	for i := range p.statements {
		s := &p.statements[i]
		if anyMatch(s.actions, action) == s.notActions {
			continue
		}
		if len(s.resources) > 0 && anyMatch(s.resources, resource) == s.notResources {
			continue
		}
		if len(s.resources) == 0 && who == nil {
			continue // only a policy on a resource may leave the resource out
		}
		if who != nil && (!s.hasPrincipal || s.names(*who) == s.notPrincipals) {
			continue
		}
		if !s.allow {
			return Deny
		}
		d = Allow
	}
	return d
}

// names tells whether the statement's principals include the caller: by ARN, by account, or everyone.
func (s *statement) names(who string) bool {
	account := ""
	if parts := strings.SplitN(who, ":", 6); len(parts) == 6 {
		account = parts[4]
	}
	for _, p := range s.principals {
		if p == "*" || p == who || (account != "" && (p == account || p == "arn:aws:iam::"+account+":root")) {
			return true
		}
	}
	return false
}

func anyMatch(patterns []string, s string) bool {
	for _, p := range patterns {
		if Match(p, s) {
			return true
		}
	}
	return false
}

// Match compares s with a pattern in which * stands for any run of characters and ? for one. Its time is bounded by the product
// of the lengths.
func Match(pattern, s string) bool {
	var p, i int
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
