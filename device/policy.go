package device

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// OwnPolicy is the policy of a device for which no other is named: its own topics only.
const OwnPolicy = "own"

// Variables of policies. awsThing is how AWS IoT policies write the device.
const (
	deviceVariable  = "{device}"
	vehicleVariable = "{vehicle}"
	awsThing        = "${iot:Connection.Thing.ThingName}"
)

// A PolicySpec says what a device may do. Topics are MQTT filters in which {device} and {vehicle} stand for its ids.
type PolicySpec struct {
	Name          string   `yaml:"name" json:"name" doc:"name; \"own\" changes the policy of devices that have no other"`
	Publish       []string `yaml:"publish" json:"publish" doc:"topics it may publish to: MQTT filters with {device} and {vehicle}"`
	Subscribe     []string `yaml:"subscribe" json:"subscribe" doc:"topics it may subscribe to; a wildcard must lie within what is allowed"`
	DenyPublish   []string `yaml:"deny_publish" json:"deny_publish,omitempty" doc:"topics it may not publish to, whatever publish says"`
	DenySubscribe []string `yaml:"deny_subscribe" json:"deny_subscribe,omitempty" doc:"topics it may not receive, whatever subscribe says"`
	Vehicles      []string `yaml:"vehicles" json:"vehicles,omitempty" doc:"makes it a gateway: globs (* and ?) of the vehicles for which it may publish; {vehicle} stands for each"`
	ClientIDs     []string `yaml:"client_ids" json:"client_ids,omitempty" doc:"globs of the client ids it may use; none: {device}, and {device}/ with anything behind it"`
}

// ownPolicy lets a device reach what is named after it, in the layouts that Milepost knows.
func ownPolicy() PolicySpec {
	return PolicySpec{
		Name: OwnPolicy,
		Publish: []string{
			"fleet/{vehicle}/#", "$aws/rules/+/fleet/{vehicle}/#", "$aws/things/{device}/shadow/#", "$aws/commands/things/{device}/#",
			"cms/telemetry/{vehicle}", "owntracks/+/{vehicle}/#",
		},
		// Commands come from the server. Who could publish them could send them to himself only, but the history would lie.
		DenyPublish: []string{"fleet/{vehicle}/commands"},
		Subscribe: []string{
			"fleet/{vehicle}/#", "$aws/things/{device}/shadow/#", "$aws/commands/things/{device}/#", "owntracks/+/{vehicle}/#",
		},
	}
}

// Policies are all that there are, checked and compiled. They do not change.
type Policies struct {
	specs    map[string]PolicySpec
	compiled map[string]*rights
}

// NewPolicies checks policies and adds the one called own, unless it is among them.
func NewPolicies(specs []PolicySpec) (*Policies, error) {
	p := &Policies{specs: map[string]PolicySpec{OwnPolicy: ownPolicy()}, compiled: map[string]*rights{}}
	var errs []error
	named := map[string]bool{}
	for i, s := range specs {
		switch err := s.check(); {
		case s.Name == "":
			errs = append(errs, fmt.Errorf("policy %d has no name", i+1))
		case named[s.Name]:
			errs = append(errs, fmt.Errorf("policy %s is there twice", s.Name))
		case err != nil:
			errs = append(errs, fmt.Errorf("policy %s: %w", s.Name, err))
		}
		named[s.Name] = true
		p.specs[s.Name] = s
	}
	for name, s := range p.specs {
		p.compiled[name] = s.compile()
	}
	return p, errors.Join(errs...)
}

func (s *PolicySpec) check() error {
	for _, g := range s.Vehicles {
		if g == "" || strings.ContainsAny(g, "/+#{}$") {
			return fmt.Errorf("vehicles: glob %q: write part of a vehicle id with * and ?", g)
		}
	}
	if slices.Contains(s.ClientIDs, "") {
		return errors.New("client_ids: an empty glob matches nothing: leave it out")
	}
	for _, list := range [][]string{s.Publish, s.Subscribe, s.DenyPublish, s.DenySubscribe} {
		for _, t := range list {
			for text := range strings.SplitSeq(strings.ReplaceAll(t, awsThing, deviceVariable), "/") {
				bare := strings.ReplaceAll(text, deviceVariable, "")
				if len(s.Vehicles) == 0 {
					bare = strings.ReplaceAll(bare, vehicleVariable, "")
				} else if text == vehicleVariable {
					bare = ""
				}
				if strings.ContainsAny(bare, "{}") {
					return fmt.Errorf("topic filter %q: level %q: there are {device} and {vehicle}; a gateway's {vehicle} stands alone between slashes", t, text)
				}
			}
			if _, err := parseFilter(strings.ReplaceAll(t, awsThing, deviceVariable), s.Vehicles); err != nil {
				return err
			}
		}
	}
	return nil
}

// Names returns the names of all policies, in order.
func (p *Policies) Names() []string {
	names := make([]string, 0, len(p.specs))
	for n := range p.specs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Spec returns a policy.
func (p *Policies) Spec(name string) (PolicySpec, bool) {
	s, ok := p.specs[name]
	return s, ok
}

// Has tells whether there is a policy of that name; "" is own.
func (p *Policies) Has(name string) bool {
	_, ok := p.specs[orOwn(name)]
	return ok
}

func orOwn(name string) string {
	if name == "" {
		return OwnPolicy
	}
	return name
}

func (n *names) expand(s string, gateway bool) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, awsThing, deviceVariable), deviceVariable, n.device)
	if gateway {
		return s
	}
	return strings.ReplaceAll(s, vehicleVariable, n.vehicle)
}

// rights are a policy compiled. They do not change, and asking them allocates nothing.
type rights struct {
	publish, subscribe, denyPublish, denySubscribe []filter
	spec                                           PolicySpec
}

// compile makes the rights of a policy that was checked.
func (s PolicySpec) compile() *rights {
	list := func(in []string) (out []filter) {
		for _, t := range in {
			if f, err := parseFilter(strings.ReplaceAll(t, awsThing, deviceVariable), s.Vehicles); err == nil { // else NewPolicies fails
				out = append(out, f)
			}
		}
		return out
	}
	return &rights{publish: list(s.Publish), subscribe: list(s.Subscribe), denyPublish: list(s.DenyPublish), denySubscribe: list(s.DenySubscribe), spec: s}
}

// of returns the rights of a policy. One that is gone from the configuration allows nothing.
func (p *Policies) of(name string) *rights {
	if r := p.compiled[orOwn(name)]; r != nil {
		return r
	}
	return &rights{spec: PolicySpec{Name: name}}
}

// shown returns the policy with the names in it, to be read by people.
func (r *rights) shown(who *names) PolicySpec {
	gateway := len(r.spec.Vehicles) > 0
	list := func(in []string) (out []string) {
		for _, t := range in {
			out = append(out, who.expand(t, gateway))
		}
		return out
	}
	return PolicySpec{
		Name: r.spec.Name, Publish: list(r.spec.Publish), Subscribe: list(r.spec.Subscribe), DenyPublish: list(r.spec.DenyPublish),
		DenySubscribe: list(r.spec.DenySubscribe), Vehicles: r.spec.Vehicles, ClientIDs: list(r.clientIDs()),
	}
}

func (r *rights) clientIDs() []string {
	if len(r.spec.ClientIDs) > 0 {
		return r.spec.ClientIDs
	}
	// Not "{device}-*": truck-1 must not take over the session of truck-1-b. No device id holds a slash.
	return []string{deviceVariable, deviceVariable + "/*"}
}

func (r *rights) mayPublish(topic []byte, who *names) bool {
	for i := range r.denyPublish {
		if r.denyPublish[i].likely(topic) && r.denyPublish[i].match(topic, who) {
			return false
		}
	}
	for i := range r.publish {
		if r.publish[i].likely(topic) && r.publish[i].match(topic, who) {
			return true
		}
	}
	return false
}

// maySubscribe tells whether all that a filter asks for is allowed, and nothing of it denied.
func (r *rights) maySubscribe(s string, who *names) bool {
	if rest, ok := strings.CutPrefix(s, "$share/"); ok {
		group, below, ok := strings.Cut(rest, "/")
		if !ok || group == "" || strings.ContainsAny(group, "+#") {
			return false
		}
		s = below
	}
	f, err := parseAsked(s)
	if err != nil {
		return false
	}
	for i := range r.denySubscribe {
		if r.denySubscribe[i].meets(&f, who) {
			return false
		}
	}
	for i := range r.subscribe {
		if r.subscribe[i].contains(&f, who) {
			return true
		}
	}
	return false
}

// mayUse tells whether a client id is the device's to use. An empty one is given by the server and harms nobody.
func (r *rights) mayUse(clientID string, who *names) bool {
	if clientID == "" || clientID == who.device && len(r.spec.ClientIDs) == 0 {
		return true
	}
	for _, g := range r.clientIDs() {
		if matchGlob(who.expand(g, len(r.spec.Vehicles) > 0), clientID) {
			return true
		}
	}
	return false
}

// A Principal is a device that was let in. Its methods allocate nothing and are safe for concurrent use.
type Principal struct {
	names
	rights      *rights
	fingerprint Fingerprint // of its certificate; zero: it came with a password
	expires     time.Time
	trace       *trace // what the journal keeps of it
}

// Device returns the device's id.
func (p *Principal) Device() string { return p.device }

// Vehicle returns the only vehicle it may publish for; "": several, ask MayReport.
func (p *Principal) Vehicle() string {
	if len(p.rights.spec.Vehicles) > 0 {
		return ""
	}
	return p.vehicle
}

// MayReport tells whether it may publish readings of a vehicle: its own, or one that its policy's globs match.
func (p *Principal) MayReport(vehicle string) bool {
	if len(p.rights.spec.Vehicles) == 0 {
		return vehicle == p.vehicle
	}
	for _, g := range p.rights.spec.Vehicles {
		if matchGlob(g, vehicle) {
			return true
		}
	}
	return false
}

// MayPublish tells whether it may publish to a topic.
func (p *Principal) MayPublish(topic []byte) bool { return p.rights.mayPublish(topic, &p.names) }

// MaySubscribe tells whether everything that a filter matches may be received.
func (p *Principal) MaySubscribe(filter string) bool { return p.rights.maySubscribe(filter, &p.names) }

// Expires returns when the connection must end; zero: never.
func (p *Principal) Expires() time.Time { return p.expires }

// Fingerprint returns the SHA-256 of its certificate; zero if it came with a password.
func (p *Principal) Fingerprint() Fingerprint { return p.fingerprint }

// Heard notes that a message came. It is one atomic store.
func (p *Principal) Heard(at time.Time) {
	if p.trace != nil {
		p.trace.heard.Store(at.UnixMilli())
	}
}
