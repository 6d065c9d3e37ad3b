package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// DialAs says whether a caller who trusts these authorities and whose clock differs by skew gets a connection to the
// replica.
func (r *Replica) DialAs(authorities *x509.CertPool, skew time.Duration) error {
	configuration := &tls.Config{
		RootCAs:    authorities,
		ServerName: WebhookHost,
		Time:       func() time.Time { return time.Now().Add(skew) },
	}
	connection, err := r.dial(configuration)
	if err != nil {
		return err
	}
	return connection.Close()
}

// Served is the certificate that the replica shows to a new caller.
func (r *Replica) Served() (*x509.Certificate, error) {
	connection, err := r.dial(&tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0], nil
}

func (r *Replica) dial(configuration *tls.Config) (*tls.Conn, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return tls.DialWithDialer(dialer, "tcp", r.address+":8443", configuration)
}

// ConfigurationKinds are the kinds that hold a caBundle each webhook.
var ConfigurationKinds = []string{"mutatingwebhookconfiguration", "validatingwebhookconfiguration"}

// Bundles are the caBundles of all webhooks.
func (c *Cluster) Bundles() ([][]byte, error) {
	var found [][]byte
	for _, kind := range ConfigurationKinds {
		bundles, err := c.bundlesOf(kind)
		if err != nil {
			return nil, err
		}
		found = append(found, bundles...)
	}
	return found, nil
}

func (c *Cluster) bundlesOf(kind string) ([][]byte, error) {
	var configuration struct {
		Webhooks []struct {
			ClientConfig struct {
				CABundle []byte `json:"caBundle"`
			} `json:"clientConfig"`
		}
	}
	path := "/apis/admissionregistration.k8s.io/v1/" + kind + "s/pinhole"
	err := c.Do(context.Background(), 0, http.MethodGet, path, nil, &configuration)
	var bundles [][]byte
	for _, webhook := range configuration.Webhooks {
		bundles = append(bundles, webhook.ClientConfig.CABundle)
	}
	return bundles, err
}

// LateCallers make a new connection to every replica again and again, and trust what the configurations said a while
// ago, as an API server does that learns late.
type LateCallers struct {
	cluster    *Cluster
	replicas   []*Replica
	late       time.Duration
	skews      []time.Duration
	stop       chan struct{}
	wait       sync.WaitGroup
	handshakes int
	refused    []string
}

// What a caller knew at some time.
type news struct {
	read   time.Time
	bundle []byte
}

// A test with fewer handshakes would prove nothing.
const leastHandshakes = 500

// StartLateCallers begins with callers who are up to `late` behind, one for each of `skews` by which a clock is wrong.
func (c *Cluster) StartLateCallers(replicas []*Replica, late time.Duration, skews ...time.Duration) *LateCallers {
	callers := &LateCallers{cluster: c, replicas: replicas, late: late, skews: skews, stop: make(chan struct{})}
	callers.wait.Go(callers.call)
	return callers
}

func (l *LateCallers) call() {
	var known []news
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		bundles, err := l.cluster.Bundles()
		if err != nil {
			l.refused = append(l.refused, err.Error())
		}
		for _, bundle := range bundles {
			known = append(known, news{time.Now(), bundle})
		}
		// The oldest that an API server may still have, and everything since.
		for 0 < len(known) && l.late < time.Since(known[0].read) {
			known = known[1:]
		}
		l.try(known)
	}
}

func (l *LateCallers) try(known []news) {
	var tried [][]byte
	for _, news := range known {
		if slices.ContainsFunc(tried, func(bundle []byte) bool { return bytes.Equal(bundle, news.bundle) }) {
			continue
		}
		tried = append(tried, news.bundle)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(news.bundle)
		for _, replica := range l.replicas {
			for _, skew := range l.skews {
				l.handshakes++
				if err := replica.DialAs(pool, skew); err != nil {
					l.refused = append(l.refused, fmt.Sprintf("%s %s, bundle of %s, clock off by %s: %v",
						time.Now().Format("15:04:05.000"), replica.Name, news.read.Format("15:04:05.000"), skew, err))
				}
			}
		}
	}
}

// Finish ends the calls. It is an error if any of them could not trust a replica, or if there were too few.
func (l *LateCallers) Finish() (string, error) {
	close(l.stop)
	l.wait.Wait()
	summary := fmt.Sprintf("%d handshakes by callers up to %s behind, %d of them refused", l.handshakes, l.late, len(l.refused))
	switch {
	case len(l.refused) != 0:
		return summary, fmt.Errorf("%s:\n%s", summary, strings.Join(l.refused, "\n"))
	case l.handshakes < leastHandshakes:
		return summary, fmt.Errorf("%s: that tells nothing, it takes %d", summary, leastHandshakes)
	}
	return summary, nil
}
