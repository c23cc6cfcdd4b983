package device

import "github.com/prometheus/client_golang/prometheus"

// metrics are the room's. A nil *metrics counts nothing.
type metrics struct {
	refusals   *prometheus.CounterVec
	enrolments *prometheus.CounterVec
	passwords  *prometheus.CounterVec
	waiting    prometheus.Gauge
	evicted    prometheus.Counter
	devices    *prometheus.GaugeVec
	expiring   prometheus.Gauge
	serverEnds prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		return nil
	}
	m := &metrics{
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_device_refusals_total", Help: "Clients that were not let in, by reason.",
		}, []string{"class"}),
		enrolments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_device_enrolments_total", Help: "Certificates issued or registered, by way: api, token, claim, just_in_time, rotation.",
		}, []string{"way"}),
		passwords: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "milepost_device_password_checks_total", Help: "Passwords checked: hashed, or remembered from a moment ago.",
		}, []string{"how"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "milepost_device_password_checks_waiting", Help: "Connections that wait for their password to be hashed.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "milepost_device_journal_evicted_total", Help: "Journals of devices or strangers that made room for others.",
		}),
		devices: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "milepost_device_enrolled", Help: "Devices in the registry, by status.",
		}, []string{"status"}),
		expiring: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "milepost_device_certificates_expiring", Help: "Active devices whose newest certificate ends soon or has ended.",
		}),
		serverEnds: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "milepost_device_server_certificate_ends_timestamp_seconds", Help: "When the listeners' certificate ends.",
		}),
	}
	for _, class := range []string{NoCertificate, UnknownCA, Expired, NotYetValid, Revoked, Suspended, NotEnrolled, WrongPassword, WrongClientID, Busy, NoHandshake, NotReady} {
		m.refusals.WithLabelValues(class)
	}
	for _, way := range []string{"api", "token", "claim", "just_in_time", "rotation"} {
		m.enrolments.WithLabelValues(way)
	}
	for _, how := range []string{"hashed", "remembered"} {
		m.passwords.WithLabelValues(how)
	}
	reg.MustRegister(m.refusals, m.enrolments, m.passwords, m.waiting, m.evicted, m.devices, m.expiring, m.serverEnds)
	return m
}

func (m *metrics) refused(class string) {
	if m != nil {
		m.refusals.WithLabelValues(class).Inc()
	}
}

func (m *metrics) enrolled(way string) {
	if m != nil {
		m.enrolments.WithLabelValues(way).Inc()
	}
}

func (m *metrics) hit(remembered bool) {
	if m == nil {
		return
	}
	how := "hashed"
	if remembered {
		how = "remembered"
	}
	m.passwords.WithLabelValues(how).Inc()
}

func (m *metrics) queued(n int) {
	if m != nil {
		m.waiting.Set(float64(n))
	}
}

func (m *metrics) evict() {
	if m != nil {
		m.evicted.Inc()
	}
}
