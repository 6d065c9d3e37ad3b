package lab

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultPods is where the pods of the namespace `default` are created.
const DefaultPods = "/api/v1/namespaces/default/pods"

// CreatePod creates a pod that asks for ports through one API server; both webhooks must have answered.
func (c *Cluster) CreatePod(server int, path, name, request string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pod := map[string]any{
		"metadata": map[string]any{"name": name, "annotations": map[string]string{"pinhole.dev/expose": request}},
		"spec":     map[string]any{"containers": []map[string]string{{"name": "main", "image": "example.com/app:1"}}},
	}
	var created struct {
		Metadata struct{ Annotations map[string]string }
	}
	if err := c.Do(ctx, server, http.MethodPost, path, pod, &created); err != nil {
		return fmt.Errorf("the validating call: %w", err)
	}
	const effective = "pinhole.dev/effective"
	if created.Metadata.Annotations[effective] == "" {
		return fmt.Errorf("the mutating call failed: the pod came without %s", effective)
	}
	return nil
}

// Load creates and deletes pods until it is stopped; every pod has the one port of its worker.
type Load struct {
	cluster  *Cluster
	stop     chan struct{}
	wait     sync.WaitGroup
	requests atomic.Int64
	mutex    sync.Mutex
	failures []string
}

// What a test under load must at least have seen; less would prove nothing.
const leastRequests = 1000

// StartLoad sends requests through the first API server from now on.
func (c *Cluster) StartLoad(workers int) *Load {
	load := &Load{cluster: c, stop: make(chan struct{})}
	for worker := range workers {
		load.wait.Go(func() { load.work(worker) })
	}
	return load
}

func (l *Load) work(worker int) {
	name := fmt.Sprintf("worker-%d", worker)
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		l.requests.Add(1)
		err := l.cluster.CreatePod(0, DefaultPods, name, fmt.Sprintf("192.0.2.71:%d", 8000+worker))
		if err == nil {
			err = l.cluster.Do(context.Background(), 0, http.MethodDelete, DefaultPods+"/"+name, nil, nil)
		}
		if err != nil {
			l.mutex.Lock()
			l.failures = append(l.failures, time.Now().Format("15:04:05.000 ")+err.Error())
			l.mutex.Unlock()
		}
	}
}

// Finish ends the load, on a busy machine once it was enough to tell. It is an error if any request or any call to the
// webhook failed since the API server started. The text says how much there was.
func (l *Load) Finish() (string, error) {
	enough := Poll(2*time.Minute, func() error {
		if requests := l.requests.Load(); requests < leastRequests {
			return fmt.Errorf("%d requests are no load, it takes %d", requests, leastRequests)
		}
		return nil
	})
	close(l.stop)
	l.wait.Wait()
	calls, err := l.cluster.WebhookCalls(0)
	if err != nil {
		return "", err
	}
	requests := l.requests.Load()
	summary := fmt.Sprintf("%d requests, %d of them failed; the API server counts %v calls, %v of them failed",
		requests, len(l.failures), calls.Total, calls.Failed)
	if len(l.failures) != 0 || calls.Failed != 0 {
		return summary, fmt.Errorf("%s:\n%s", summary, strings.Join(l.failures, "\n"))
	}
	return summary, enough
}
