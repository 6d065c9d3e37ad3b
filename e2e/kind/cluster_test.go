// Package kind tests the main job on a cluster of real kubelets: what a user does with kubectl, and what a client outside
// the cluster gets. `e2e/kind/run` starts it where the nodes can be reached.
package kind

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	control     = "pinhole-control-plane"
	worker      = "pinhole-worker"
	otherWorker = "pinhole-worker2"
	// A container on the nodes' network that is no part of the cluster, and serves HTTP on this port itself.
	client     = "pinhole-client"
	clientPort = 8080
	agnhost    = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
	system     = "pinhole-system"
)

var nodes = []string{control, worker, otherWorker}

func TestMain(m *testing.M) {
	for began := time.Now(); ; time.Sleep(time.Second) {
		output, err := tryKubectl("", "get", "--raw", "/readyz")
		if err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			fmt.Fprintf(os.Stderr, "no cluster answers; bring it up with `make e2e-up`, then run `make e2e-run`\n%s\n", output)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// tryKubectl returns what kubectl printed, errors included.
func tryKubectl(input string, arguments ...string) (string, error) {
	return command(input, "kubectl", append([]string{"--request-timeout=30s"}, arguments...)...)
}

func command(input, name string, arguments ...string) (string, error) {
	process := exec.Command(name, arguments...)
	process.Stdin = strings.NewReader(input)
	var output bytes.Buffer
	process.Stdout, process.Stderr = &output, &output
	err := process.Run()
	return output.String(), err
}

func kubectl(t *testing.T, input string, arguments ...string) string {
	t.Helper()
	output, err := tryKubectl(input, arguments...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return output
}

// helm runs the program against the suite's release.
func helm(t *testing.T, arguments ...string) {
	t.Helper()
	if output, err := command("", "helm", append(arguments, "--namespace", system)...); err != nil {
		keepLogs(t)
		t.Fatalf("helm %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
}

// onNode runs a shell command on a node, or in the client.
func onNode(t *testing.T, node, shell string) string {
	t.Helper()
	output, err := command("", "docker", "exec", node, "sh", "-c", shell)
	if err != nil {
		t.Fatalf("on %s: %s: %v\n%s", node, shell, err, output)
	}
	return output
}

// eventually calls check until it returns nil.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// scene is a namespace for one scenario. When the scenario fails, the logs of every component are kept.
type scene struct {
	t         *testing.T
	namespace string
}

func newScene(t *testing.T, namespace string) scene {
	t.Helper()
	s := scene{t, namespace}
	// A scenario that was interrupted may have left it.
	kubectl(t, "", "delete", "namespace", namespace, "--ignore-not-found", "--timeout=60s")
	kubectl(t, "", "create", "namespace", namespace)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t)
		}
		kubectl(t, "", "delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
	})
	return s
}

// A scenario with two scenes needs its logs once.
var kept = map[string]bool{}

func keepLogs(t *testing.T) {
	root := os.Getenv("E2E_LOGS")
	if root == "" {
		t.Log("E2E_LOGS names no directory: no logs are kept")
		return
	}
	directory := filepath.Join(root, t.Name())
	if kept[directory] {
		return
	}
	kept[directory] = true
	if output, err := command("", "./logs", directory); err != nil {
		t.Logf("the logs could not be collected: %v\n%s", err, output)
		return
	}
	t.Logf("the logs of all components are in %s", directory)
}

func (s scene) kubectl(arguments ...string) string {
	s.t.Helper()
	return kubectl(s.t, "", append([]string{"--namespace", s.namespace}, arguments...)...)
}

func (s scene) apply(manifest string) string {
	s.t.Helper()
	output, err := s.tryApply(manifest)
	if err != nil {
		s.t.Fatalf("kubectl apply: %v\n%s\n%s", err, output, manifest)
	}
	return output
}

func (s scene) tryApply(manifest string) (string, error) {
	return tryKubectl(manifest, "--namespace", s.namespace, "apply", "--filename", "-")
}

// refused applies a manifest that must be refused, and returns what the user reads.
func (s scene) refused(manifest string) string {
	s.t.Helper()
	output, err := s.tryApply(manifest)
	if err == nil {
		s.t.Fatalf("it was accepted:\n%s\n%s", manifest, output)
	}
	return output
}

// ready waits until pods with a label run.
func (s scene) ready(selector string) {
	s.t.Helper()
	eventually(s.t, 90*time.Second, "pods "+selector+" become ready", func() error {
		output, err := tryKubectl("", "--namespace", s.namespace, "wait", "--for=condition=Ready", "pod",
			"--selector", selector, "--timeout=30s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	})
}

type pod struct {
	Metadata struct {
		Name, UID           string
		Annotations, Labels map[string]string
		DeletionTimestamp   string
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase  string
		PodIPs []struct{ IP string }
	}
}

func (s scene) pods(selector string) []pod {
	s.t.Helper()
	var list struct{ Items []pod }
	output := s.kubectl("get", "pods", "--selector", selector, "--output", "json")
	if err := json.Unmarshal([]byte(output), &list); err != nil {
		s.t.Fatalf("%v: %s", err, output)
	}
	return list.Items
}

func (s scene) onlyPod(selector string) pod {
	s.t.Helper()
	found := s.pods(selector)
	if len(found) != 1 {
		s.t.Fatalf("%d pods %s, expected one", len(found), selector)
	}
	return found[0]
}

// lastPod waits until a rollout has left one pod, and names it.
func (s scene) lastPod(selector string) string {
	s.t.Helper()
	eventually(s.t, 60*time.Second, "only the newest pod is left", func() error {
		if left := len(s.pods(selector)); left != 1 {
			return fmt.Errorf("%d pods", left)
		}
		return nil
	})
	return s.onlyPod(selector).Metadata.Name
}

// serves publishes a port of the first worker for a pod named `web` there, and tells the worker's address once the client
// outside gets an answer.
func (s scene) serves(port int) (address string) {
	s.t.Helper()
	address = addressesOf(s.t, worker).v4
	s.apply(webPod("web", "pinhole.dev/expose", fmt.Sprintf("%d:8080", port), atNode(worker)))
	s.ready("app=web")
	if answer := reaches(s.t, address, port, "hostname"); answer != "web" {
		s.t.Errorf("%s answers", answer)
	}
	return address
}

type addresses struct{ v4, v6 string }

// served are those of the families that the cluster has.
func (a addresses) served() []string {
	if os.Getenv("E2E_IP_FAMILY") == "ipv4" {
		return []string{a.v4}
	}
	return []string{a.v4, a.v6}
}

// addressesOf tells a node's or the client's own addresses on the network that they share.
func addressesOf(t *testing.T, container string) addresses {
	t.Helper()
	output, err := command("", "docker", "inspect", "--format",
		"{{.NetworkSettings.Networks.kind.IPAddress}} {{.NetworkSettings.Networks.kind.GlobalIPv6Address}}", container)
	parts := strings.Fields(output)
	if err != nil || len(parts) != 2 {
		t.Fatalf("the addresses of %s: %v: %s", container, err, output)
	}
	return addresses{parts[0], parts[1]}
}

func hostPort(address string, port int) string { return net.JoinHostPort(address, fmt.Sprint(port)) }

// fetchFromClient makes the client outside the cluster read a page.
func fetchFromClient(address string, port int, page string) (string, error) {
	output, err := command("", "docker", "exec", client, "curl", "--silent", "--show-error", "--fail", "--max-time", "2",
		fmt.Sprintf("http://%s/%s", hostPort(address, port), page))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", hostPort(address, port), err, strings.TrimSpace(output))
	}
	return strings.TrimSpace(output), nil
}

// reaches waits until the client gets a page, and returns it.
func reaches(t *testing.T, address string, port int, page string) string {
	t.Helper()
	var got string
	eventually(t, 20*time.Second, "the client outside reaches "+hostPort(address, port), func() (err error) {
		got, err = fetchFromClient(address, port, page)
		return err
	})
	return got
}

func unreachable(t *testing.T, address string, port int) {
	t.Helper()
	eventually(t, 20*time.Second, hostPort(address, port)+" is closed again", func() error {
		if got, err := fetchFromClient(address, port, "hostname"); err == nil {
			return fmt.Errorf("%s answers", got)
		}
		return nil
	})
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatalf("%q is no address with a port", address)
	}
	return host
}

// webPod is a pod that serves HTTP on 8080, with an annotation and further lines of its specification.
func webPod(name, annotation, value string, specification ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  labels: {app: %s}
  annotations: {%s: %q}
%s`, name, name, annotation, value, indent(webSpec(specification...), 0))
}

// webDeployment is a Deployment of such pods. An old pod serves on for some seconds after its end was announced, as every
// server behind a load balancer should.
func webDeployment(name, annotation, value string, replicas int, specification ...string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  replicas: %d
  selector: {matchLabels: {app: %s}}
  template:
    metadata:
      labels: {app: %s}
      annotations: {%s: %q}
%s`, name, replicas, name, name, annotation, value, indent(webSpec(specification...), 4))
}

func webSpec(specification ...string) string {
	lines := []string{
		"spec:",
		"  terminationGracePeriodSeconds: 10",
		"  containers:",
		"    - name: web",
		"      image: " + agnhost,
		"      args: [netexec, --http-port=8080]",
		"      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}",
		"      lifecycle: {preStop: {sleep: {seconds: 5}}}",
	}
	for _, line := range specification {
		lines = append(lines, "  "+line)
	}
	return strings.Join(lines, "\n") + "\n"
}

func indent(text string, by int) string {
	if by == 0 {
		return text
	}
	prefix := strings.Repeat(" ", by)
	return prefix + strings.TrimSuffix(strings.ReplaceAll(text, "\n", "\n"+prefix), prefix)
}

// workload is a kind that makes pods, with one pod that serves HTTP.
type workload struct {
	kind, version string
	// Of its specification, besides the template; %s is the name.
	head string
	// What its pods' specification needs.
	pods []string
}

const selects = "  selector: {matchLabels: {app: %s}}\n"

var workloads = []workload{
	{kind: "StatefulSet", version: "apps/v1", head: selects},
	{kind: "DaemonSet", version: "apps/v1", head: selects},
	// It makes its own selector.
	{kind: "Job", version: "batch/v1", pods: []string{"restartPolicy: Never"}},
}

func (w workload) name() string { return strings.ToLower(w.kind) }

func (w workload) manifest(port int, specification ...string) string {
	return fmt.Sprintf(`apiVersion: %s
kind: %s
metadata: {name: %s}
spec:
%s  template:
    metadata:
      labels: {app: %s}
      annotations: {pinhole.dev/expose: "%d:8080"}
%s`, w.version, w.kind, w.name(), strings.ReplaceAll(w.head, "%s", w.name()), w.name(), port,
		indent(webSpec(append(specification, w.pods...)...), 4))
}

// atNode pins a pod to a node as a user would.
func atNode(node string) string { return "nodeSelector: {kubernetes.io/hostname: " + node + "}" }

// callers make one call after the other until they are stopped; those of keepCalling on a new connection each.
type callers struct {
	stop   chan struct{}
	result chan callsMade
}

type callsMade struct {
	answered int
	failures []string
	// Who answered, in order, each once per change.
	answers []string
}

func keepCalling(address string, port int) *callers {
	browser := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	return keep(20*time.Millisecond, func() (string, error) {
		return page(browser, fmt.Sprintf("http://%s/hostname", hostPort(address, port)))
	})
}

// keep makes a call again and again, with a pause before each.
func keep(pause time.Duration, call func() (answer string, err error)) *callers {
	c := &callers{make(chan struct{}), make(chan callsMade, 1)}
	go func() {
		var made callsMade
		for {
			select {
			case <-c.stop:
				c.result <- made
				return
			case <-time.After(pause):
			}
			began := time.Now()
			answer, err := call()
			if err != nil {
				made.failures = append(made.failures, fmt.Sprintf("%s, after %s: %v",
					began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
				continue
			}
			made.answered++
			if len(made.answers) == 0 || made.answers[len(made.answers)-1] != answer {
				made.answers = append(made.answers, answer)
			}
		}
	}()
	return c
}

func page(browser *http.Client, address string) (string, error) {
	response, err := browser.Get(address)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", response.Status)
	}
	return string(body), err
}

func (c *callers) finish() callsMade {
	close(c.stop)
	return <-c.result
}

// conversation is one connection that stays open, over which requests are made one after the other.
type conversation struct {
	connection net.Conn
	host       string
}

func converse(t *testing.T, address string, port int) *conversation {
	t.Helper()
	connection, err := net.DialTimeout("tcp", hostPort(address, port), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return &conversation{connection, hostPort(address, port)}
}

func (c *conversation) ask(t *testing.T) string {
	t.Helper()
	if err := c.connection.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c.connection, "GET /hostname HTTP/1.1\r\nHost: %s\r\n\r\n", c.host); err != nil {
		t.Fatalf("the open connection broke: %v", err)
	}
	buffer := make([]byte, 4096)
	count, err := c.connection.Read(buffer)
	if err != nil {
		t.Fatalf("the open connection broke: %v", err)
	}
	_, body, _ := strings.Cut(string(buffer[:count]), "\r\n\r\n")
	return body
}
