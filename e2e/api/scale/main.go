// Command scale fills a real API server with claims and Pinholes, and measures what that costs webhook, controller, agent and
// the API server itself: memory, and how long a user and a port wait. It writes its tables to docs/benchmarks.md.
//
//	scale [-claims 10000,100000] [-pinholes 10000] [-page ../../docs/benchmarks.md]
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

const (
	// Ports of one request while claims are made, and requests at a time.
	portsEach, atOnce = 20, 2
	// Requests of which a latency's quantiles are.
	samples = 200
	// The one node with an agent, and its address that all Pinholes are on.
	node, nodeAddress = "node-1", "198.19.0.1"
	// Above what nodes protect.
	firstPort = 20000
	podsPath  = "/api/v1/namespaces/default/pods"
)

var boundClaims = regexp.MustCompile(`(?m)^pinhole_controller_claims\{state="Bound"\} (\d+)$`)

type object = map[string]any

func main() {
	claims := flag.String("claims", "10000,100000", "how many claims there are at each stage")
	pinholes := flag.Int("pinholes", 10000, "how many Pinholes the node serves")
	page := flag.String("page", "../../docs/benchmarks.md", "the page into which the tables are written")
	flag.Parse()
	if err := lab.EnterSandbox(); err != nil {
		fail(err)
	}
	report, err := measure(*claims, *pinholes)
	if err != nil {
		fail(err)
	}
	if err := write(*page, report); err != nil {
		fail(err)
	}
	fmt.Print(report)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "scale:", err)
	os.Exit(1)
}

func say(format string, values ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", values...)
}

// scene is the cluster that is being filled.
type scene struct {
	*lab.Cluster
	webhook    *lab.Replica
	controller *lab.Controller
	// How many stages were measured: each has an address of its own, because ports cool down.
	stages int
}

func measure(stages string, pinholes int) (string, error) {
	cluster, err := lab.StartCluster(lab.Options{Name: "scale", Network: 20, APIServers: 1})
	if err != nil {
		return "", err
	}
	s := scene{Cluster: cluster}
	if result, err := s.Kubectl("", "apply", "-f", "../../webhook-config/claims.yaml"); err != nil || !result.Succeeded {
		return "", errors.Join(err, errors.New(result.Stderr))
	}
	pool := object{
		"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatPool", "metadata": object{"name": "scale"},
		"spec": object{"addresses": []string{"198.18.0.0/15"}, "namespaces": object{"all": true}},
	}
	if err := s.post("/apis/pinhole.dev/v1alpha1/natpools", pool); err != nil {
		return "", err
	}
	if err := errors.Join(s.startWebhook(), s.startController()); err != nil {
		return "", err
	}
	load := loadAverage()
	var rows, pods strings.Builder
	row := func(count int) error {
		text, err := s.stage(count)
		rows.WriteString(text)
		return err
	}
	if err := row(0); err != nil {
		return "", err
	}
	made := 0
	for word := range strings.SplitSeq(stages, ",") {
		count, err := strconv.Atoi(word)
		if err != nil || count < made {
			return "", fmt.Errorf("-claims %s: expected numbers that grow", stages)
		}
		took, err := s.claim(made, count)
		if err != nil {
			return "", err
		}
		say("%d claims after %s more", count, took.Round(time.Second))
		made = count
		if err := row(count); err != nil {
			return "", err
		}
	}
	if err := s.servePinholes(pinholes, &pods); err != nil {
		return "", err
	}
	return fmt.Sprintf("`make bench-scale` on %s: a real API server with its etcd, one webhook, one controller and one agent on the "+
		"same machine, release builds. Load average %s at the start.\n\n"+
		"| claims | a pod without ports, p50 / p99 | a pod whose port is claimed, p50 / p99 | webhook, resident | controller, resident | "+
		"webhook, start to ready | controller, start to ready | API server, resident |\n|---|---|---|---|---|---|---|---|\n%s\n%s",
		machine(), load, rows.String(), pods.String()), nil
}

func (s *scene) startWebhook() (err error) {
	s.webhook, err = s.StartReadyReplica("--claims")
	return err
}

func (s *scene) startController() (err error) {
	s.controller, err = s.StartController()
	return err
}

func (s scene) post(path string, body object) error {
	return s.Do(context.Background(), 0, http.MethodPost, path, body, nil)
}

// claim makes claims up to a number, as users do: by workloads whose templates ask for ports. None of them has a pod.
func (s scene) claim(from, to int) (time.Duration, error) {
	began := time.Now()
	numbers := make(chan int)
	failed := make([]error, atOnce)
	var workers sync.WaitGroup
	for worker := range atOnce {
		workers.Go(func() {
			for number := range numbers {
				if failed[worker] == nil {
					failed[worker] = s.post("/apis/apps/v1/namespaces/default/deployments", deployment(number))
				}
			}
		})
	}
	for number := from / portsEach; number < to/portsEach; number++ {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
	if err := errors.Join(failed...); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, lab.Poll(20*time.Minute, func() error {
		metrics, err := s.controller.Metrics()
		if err != nil {
			return err
		}
		// Those of the stages before, whose pods are gone, stay bound for two minutes.
		var bound int
		if found := boundClaims.FindStringSubmatch(metrics); found != nil {
			bound, _ = strconv.Atoi(found[1])
		}
		if bound < to {
			return fmt.Errorf("%d of %d claims are bound", bound, to)
		}
		return nil
	})
}

func deployment(number int) object {
	ports := make([]string, portsEach)
	for index := range ports {
		ports[index] = fmt.Sprintf("198.18.%d.%d:%d", number/200, number%200+1, 20000+index)
	}
	labels := object{"app": fmt.Sprint("workload-", number)}
	return object{
		"metadata": object{"name": labels["app"]},
		"spec": object{
			"replicas": 0, "selector": object{"matchLabels": labels},
			"template": object{
				"metadata": object{"labels": labels, "annotations": object{"pinhole.dev/expose": strings.Join(ports, ",")}},
				"spec":     podSpec(),
			},
		},
	}
}

func podSpec() object {
	return object{"containers": []object{{"name": "main", "image": "example.com/app:1"}}}
}

// stage measures with so many claims present.
func (s *scene) stage(count int) (string, error) {
	create := func(name, ports string) func(int) error {
		return func(number int) error {
			metadata := object{"name": fmt.Sprintf("%s-%d-%d", name, count, number)}
			if ports != "" {
				metadata["annotations"] = object{"pinhole.dev/expose": fmt.Sprintf(ports, 1024+number)}
			}
			return s.post(podsPath, object{"metadata": metadata, "spec": podSpec()})
		}
	}
	plain, err := latencies(samples, create("plain", ""))
	if err != nil {
		return "", err
	}
	claimed, err := latencies(samples, create("claimed", fmt.Sprintf("198.19.%d.9:%%d", 1+s.stages)))
	if err != nil {
		return "", err
	}
	// What was made for this stage is not counted in the next one.
	for _, name := range []string{"plain", "claimed"} {
		for number := range samples {
			if err := s.Do(context.Background(), 0, http.MethodDelete, fmt.Sprintf("%s/%s-%d-%d?gracePeriodSeconds=0", podsPath, name, count, number), nil, nil); err != nil {
				return "", err
			}
		}
	}
	s.stages++
	webhook, controller, server := s.webhook.Resident(), s.controller.Resident(), s.APIServer(0).Resident()
	s.webhook.Kill()
	s.controller.Kill()
	webhookReady, err := timed(s.startWebhook)
	if err != nil {
		return "", err
	}
	controllerReady, err := timed(s.startController)
	return fmt.Sprintf("| %d | %s | %s | %d MB | %d MB | %.1f s | %.1f s | %d MB |\n", count, plain, claimed, webhook>>20, controller>>20,
		webhookReady.Seconds(), controllerReady.Seconds(), server>>20), err
}

// servePinholes gives one node so many pods with a port each, and then measures how long one more waits.
func (s scene) servePinholes(count int, report *strings.Builder) error {
	if err := errors.Join(lab.AddNodeAddress(nodeAddress), s.post("/api/v1/nodes", object{"metadata": object{"name": node}})); err != nil {
		return err
	}
	agent, err := s.StartAgent(node, "--claims", "--nat-node")
	if err != nil {
		return err
	}
	numbers := make(chan int)
	failed := make([]error, atOnce)
	var workers sync.WaitGroup
	began := time.Now()
	for worker := range atOnce {
		workers.Go(func() {
			for number := range numbers {
				if failed[worker] == nil {
					failed[worker] = s.run(number)
				}
			}
		})
	}
	for number := range count {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	var programmed int
	if err := lab.Poll(20*time.Minute, func() error {
		entries, err := agent.Entries()
		if programmed = strings.Count(entries, `"pod":`); err == nil && programmed != count {
			err = fmt.Errorf("%d of %d entries are programmed", programmed, count)
		}
		return err
	}); err != nil {
		return fmt.Errorf("%w\n%s", err, agent.LogTail())
	}
	say("%d Pinholes are programmed after %s", count, time.Since(began).Round(time.Second))
	waits, err := latencies(50, func(number int) error {
		number += count
		if err := s.run(number); err != nil {
			return err
		}
		path := fmt.Sprintf("/apis/pinhole.dev/v1alpha1/namespaces/default/pinholes/served-%d", number)
		return lab.Poll(time.Minute, func() error {
			var pinhole struct {
				Status struct {
					Conditions []struct{ Type, Status string }
				}
			}
			err := s.Do(context.Background(), 0, http.MethodGet, path, nil, &pinhole)
			if err == nil && !slices.Contains(pinhole.Status.Conditions, struct{ Type, Status string }{"Programmed", "True"}) {
				err = errors.New("it is not programmed")
			}
			return err
		})
	})
	fmt.Fprintf(report, "| Pinholes on one node | pod stored to condition Programmed, p50 / p99 of 50 | agent, resident | controller, resident | webhook, resident |\n"+
		"|---|---|---|---|---|\n| %d | %s | %d MB | %d MB | %d MB |\n",
		count, waits, agent.Resident()>>20, s.controller.Resident()>>20, s.webhook.Resident()>>20)
	return err
}

// run makes a pod with a port on the node, and says what a kubelet does once it runs.
func (s scene) run(number int) error {
	name, ip := fmt.Sprint("served-", number), fmt.Sprintf("10.244.%d.%d", number/250, number%250+1)
	spec := podSpec()
	spec["nodeName"] = node
	if err := s.post(podsPath, object{
		"metadata": object{"name": name, "annotations": object{"pinhole.dev/expose": fmt.Sprintf("%s:%d:80", nodeAddress, firstPort+number)}},
		"spec":     spec,
	}); err != nil {
		return err
	}
	return s.Do(context.Background(), 0, http.MethodPatch, podsPath+"/"+name+"/status", object{"status": object{
		"phase": "Running", "podIP": ip, "podIPs": []object{{"ip": ip}},
		"conditions": []object{{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "True"}},
	}}, nil)
}

func timed(action func() error) (time.Duration, error) {
	began := time.Now()
	err := action()
	return time.Since(began), err
}

// latencies runs an action so often, one after the other, and tells the median and the 99th percentile.
func latencies(times int, action func(int) error) (string, error) {
	took := make([]time.Duration, times)
	for number := range took {
		var err error
		if took[number], err = timed(func() error { return action(number) }); err != nil {
			return "", err
		}
	}
	slices.Sort(took)
	milliseconds := func(quantile float64) float64 {
		return float64(took[int(quantile*float64(times-1))].Microseconds()) / 1000
	}
	return fmt.Sprintf("%.1f / %.1f ms", milliseconds(0.5), milliseconds(0.99)), nil
}

// write puts the report into its place in the page, in place of the one before.
func write(page, report string) error {
	const begin, end = "<!-- written by make bench-scale -->\n", "<!-- end of make bench-scale -->"
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	head, rest, found := bytes.Cut(text, []byte(begin))
	_, tail, closed := bytes.Cut(rest, []byte(end))
	if !found || !closed {
		return fmt.Errorf("%s has no place for the report: %s%s", page, begin, end)
	}
	return os.WriteFile(page, slices.Concat(head, []byte(begin+report+end), tail), 0o644)
}

func machine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(text)
	if model == nil {
		return "a machine that does not tell its processors"
	}
	return fmt.Sprintf("%d x %s", bytes.Count(text, []byte("\nprocessor"))+1, model[1])
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.SplitN(string(text), " ", 2)[0]
}
