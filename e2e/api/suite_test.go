// Package api tests Pinhole's webhook through a real Kubernetes API server, mostly with the real kubectl: what a user
// types, and what a user reads.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

func TestMain(m *testing.M) {
	if err := lab.EnterSandbox(); err != nil {
		fmt.Fprintln(os.Stderr, "the cluster tests cannot run:", err)
		os.Exit(1)
	}
	flag.Parse()
	// Most of the time the tests wait, and the longest one waits for six minutes: all of them begin at once, and those
	// that share a cluster take turns by themselves.
	if err := flag.Set("test.parallel", "1000"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(runSuite(m))
}

// runSuite runs the tests, and unless some were chosen by name, the one that looks back at what all of them did.
func runSuite(m *testing.M) int {
	if flag.Lookup("test.run").Value.String() != "" {
		return m.Run()
	}
	skipped := rightsTest
	if more := flag.Lookup("test.skip").Value.String(); more != "" {
		skipped += "|" + more
	}
	if err := flag.Set("test.skip", skipped); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := errors.Join(flag.Set("test.skip", ""), flag.Set("test.run", "^"+rightsTest+"$")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return max(code, m.Run())
}

// The cluster in which users' requests are tested: one API server, the controllers, one replica of the webhook.
var office = sync.OnceValues(func() (*officeCluster, error) {
	cluster, err := lab.StartCluster(lab.Options{
		Name: "office", Network: 1, APIServers: 1, Controllers: true, BeforeWebhook: olderThanTheWebhook,
	})
	if err != nil {
		return nil, err
	}
	replica, err := cluster.StartReadyReplica()
	if err != nil {
		return nil, err
	}
	return &officeCluster{Cluster: cluster, replica: replica}, nil
})

type officeCluster struct {
	*lab.Cluster
	replica *lab.Replica
	// Held for reading by every test, for writing by those that count calls.
	quiet sync.RWMutex
}

// Two cores serve everything: more tests at a time would only wait for each other.
var officeDesks = make(chan struct{}, 3)

// desk is a namespace for one test in the office cluster.
type desk struct {
	t         *testing.T
	cluster   *officeCluster
	namespace string
}

// newDesk waits for a free place in the office cluster, which it may share with other tests.
func newDesk(t *testing.T, namespace string) desk {
	t.Helper()
	cluster := enterOffice(t)
	cluster.quiet.RLock()
	t.Cleanup(cluster.quiet.RUnlock)
	officeDesks <- struct{}{}
	t.Cleanup(func() { <-officeDesks })
	return openDesk(t, cluster, namespace)
}

// newQuietDesk waits until no other test uses the office cluster, and keeps it to itself.
func newQuietDesk(t *testing.T, namespace string) desk {
	t.Helper()
	cluster := enterOffice(t)
	cluster.quiet.Lock()
	t.Cleanup(cluster.quiet.Unlock)
	return openDesk(t, cluster, namespace)
}

func enterOffice(t *testing.T) *officeCluster {
	t.Helper()
	t.Parallel()
	cluster, err := office()
	if err != nil {
		t.Fatal(err)
	}
	return cluster
}

func openDesk(t *testing.T, cluster *officeCluster, namespace string) desk {
	t.Helper()
	d := desk{t, cluster, namespace}
	d.another(namespace)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(cluster.replica.LogTail())
		}
	})
	return d
}

// another makes a second namespace for the test and returns a desk there.
func (d desk) another(namespace string) desk {
	d.t.Helper()
	err := d.cluster.Do(context.Background(), 0, http.MethodPost, "/api/v1/namespaces",
		object{"metadata": object{"name": namespace}}, nil)
	var status *lab.StatusError
	if err != nil && (!errors.As(err, &status) || status.Code != http.StatusConflict) {
		d.t.Fatal(err)
	}
	d.namespace = namespace
	return d
}

// kubectl runs kubectl in the test's namespace.
func (d desk) kubectl(stdin string, arguments ...string) lab.Result {
	d.t.Helper()
	result, err := d.cluster.Kubectl(stdin, append([]string{"--namespace=" + d.namespace}, arguments...)...)
	if err != nil {
		d.t.Fatal(err)
	}
	return result
}

// succeeds runs a kubectl call that must succeed.
func (d desk) succeeds(stdin string, arguments ...string) lab.Result {
	d.t.Helper()
	result := d.kubectl(stdin, arguments...)
	if !result.Succeeded {
		d.t.Fatalf("kubectl %s failed:\n%s%s", strings.Join(arguments, " "), result.Stderr, stdin)
	}
	return result
}

// fails runs a kubectl call that must not succeed, and returns what kubectl says.
func (d desk) fails(stdin string, arguments ...string) string {
	d.t.Helper()
	result := d.kubectl(stdin, arguments...)
	if result.Succeeded {
		d.t.Fatalf("kubectl %s succeeded, and must not:\n%s%s%s", strings.Join(arguments, " "), result.Stdout, result.Stderr, stdin)
	}
	return result.Stderr
}

// accepted applies a manifest that must pass.
func (d desk) accepted(manifest string) lab.Result {
	d.t.Helper()
	return d.succeeds(manifest, "apply", "-f", "-")
}

// refused applies a manifest that must not pass, and returns what kubectl says.
func (d desk) refused(manifest string) string {
	d.t.Helper()
	return d.fails(manifest, "apply", "-f", "-")
}

// golden compares a text with testdata/NAME.
func (d desk) golden(name, text string) {
	d.t.Helper()
	if err := lab.Golden(name, text); err != nil {
		d.t.Error(err)
	}
}

// mentions fails the test unless text holds every one of words.
func (d desk) mentions(text string, words ...string) {
	d.t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			d.t.Errorf("%q is not in:\n%s", word, text)
		}
	}
}

// eventually waits until check returns nil.
func (d desk) eventually(check func() error) {
	d.t.Helper()
	if err := lab.Poll(patience, check); err != nil {
		d.t.Fatal(err)
	}
}

type object = map[string]any

// storedPod is what these tests look at in a pod.
type storedPod struct {
	Metadata struct {
		Name              string
		Annotations       map[string]string
		Labels            map[string]string
		DeletionTimestamp string
	}
	Spec struct {
		NodeName string
	}
	Status struct {
		Phase string
	}
}

func (d desk) pods() []storedPod {
	d.t.Helper()
	var list struct{ Items []storedPod }
	if err := d.cluster.Do(context.Background(), 0, http.MethodGet, d.podsPath(), nil, &list); err != nil {
		d.t.Fatal(err)
	}
	return list.Items
}

func (d desk) podsPath() string { return "/api/v1/namespaces/" + d.namespace + "/pods" }

func (d desk) pod(name string) storedPod {
	d.t.Helper()
	var pod storedPod
	if err := d.cluster.Do(context.Background(), 0, http.MethodGet, d.podsPath()+"/"+name, nil, &pod); err != nil {
		d.t.Fatal(err)
	}
	return pod
}

// reportStatus sets a pod's phase as its kubelet would.
func (d desk) reportStatus(name, phase string) {
	d.t.Helper()
	if err := d.cluster.Do(context.Background(), 0, http.MethodPatch, d.podsPath()+"/"+name+"/status", statusOf(phase), nil); err != nil {
		d.t.Fatal(err)
	}
}

func statusOf(phase string) object { return statusAt(phase, "10.244.1.9") }

func statusAt(phase, ip string) object {
	ready := "False"
	if phase == "Running" {
		ready = "True"
	}
	return object{"status": object{
		"phase":  phase,
		"podIP":  ip,
		"podIPs": []object{{"ip": ip}},
		"conditions": []object{
			{"type": "Ready", "status": ready, "lastTransitionTime": time.Now().UTC().Format(time.RFC3339)},
			{"type": "ContainersReady", "status": ready},
		},
	}}
}

// notes are annotations.
type notes map[string]string

// expose is the short form of a NAT request.
func expose(request string) notes { return notes{"pinhole.dev/expose": request} }

// nat is the JSON form of a NAT request.
func nat(request string) notes { return notes{"pinhole.dev/nat": request} }

func (n notes) String() string {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// pod is the manifest of a pod; spec holds further lines of its spec.
func pod(name string, annotations notes, spec ...string) string {
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  annotations: %s\nspec:\n  containers: [{name: main, image: example.com/app:1}]\n",
		name, annotations)
	for _, line := range spec {
		text += "  " + line + "\n"
	}
	return text
}

// kinds are the kinds of workload whose pod templates are checked.
var kinds = []string{"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"}

// workload is the manifest of a workload of one of kinds.
func workload(kind, name string, annotations notes, spec ...string) string {
	template := func(restartPolicy string) string {
		return fmt.Sprintf(`{metadata: {labels: {app: %s}, annotations: %s}, spec: {restartPolicy: %s, containers: [{name: main, image: "example.com/app:1"}]}}`,
			name, annotations, restartPolicy)
	}
	selector := fmt.Sprintf("selector: {matchLabels: {app: %s}}", name)
	version, lines := "apps/v1", []string{selector, "template: " + template("Always")}
	switch kind {
	case "StatefulSet":
		lines = append(lines, "serviceName: "+name)
	case "Job":
		version, lines = "batch/v1", []string{"template: " + template("Never")}
	case "CronJob":
		version, lines = "batch/v1", []string{`schedule: "0 0 29 2 *"`, "jobTemplate: {spec: {template: " + template("Never") + "}}"}
	}
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s}\nspec:\n  %s\n",
		version, kind, name, strings.Join(append(lines, spec...), "\n  "))
}
