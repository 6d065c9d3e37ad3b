package chart

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// kubelets stand in for the scheduler and for the kubelets of some nodes. They let pods of a DaemonSet become ready and
// end, and run the program of a Job's pod for real, with the rights of its ServiceAccount.
type kubelets struct {
	t         *testing.T
	cluster   *lab.Cluster
	namespace string

	mutex sync.Mutex
	// Nodes where the pods of a cleanup do not become ready, and what they say.
	stuck map[string]string
	// What a Job's program wrote, by the name of its pod.
	output map[string]string
	// What happened on the nodes, in order.
	events []string
}

type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp string `json:"deletionTimestamp"`
		Labels            map[string]string
	}
	Spec struct {
		NodeName           string `json:"nodeName"`
		ServiceAccountName string `json:"serviceAccountName"`
		RestartPolicy      string `json:"restartPolicy"`
		Containers         []struct{ Args []string }
		Affinity           struct {
			NodeAffinity struct {
				Required struct {
					NodeSelectorTerms []struct {
						MatchFields []struct{ Values []string } `json:"matchFields"`
					} `json:"nodeSelectorTerms"`
				} `json:"requiredDuringSchedulingIgnoredDuringExecution"`
			} `json:"nodeAffinity"`
		}
	}
	Status struct {
		Phase      string
		Conditions []struct{ Type, Status string }
	}
}

func (p pod) component() string { return p.Metadata.Labels["app.kubernetes.io/component"] }

func (p pod) isReady() bool {
	return slices.ContainsFunc(p.Status.Conditions, func(condition struct{ Type, Status string }) bool {
		return condition.Type == "Ready" && condition.Status == "True"
	})
}

// startKubelets begins to look after the pods of a namespace, until the test ends.
func startKubelets(t *testing.T, cluster *lab.Cluster, namespace string) *kubelets {
	t.Helper()
	k := &kubelets{t: t, cluster: cluster, namespace: namespace, stuck: map[string]string{}, output: map[string]string{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				// What fails now, for example because a pod is gone, is tried again on what is there then.
				_ = k.turn()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return k
}

func (k *kubelets) do(method, path string, body, out any) error {
	return k.cluster.Do(context.Background(), 0, method, path, body, out)
}

func (k *kubelets) turn() error {
	ready, err := k.readyNodes()
	if err != nil {
		return err
	}
	var pods struct{ Items []pod }
	path := "/api/v1/namespaces/" + k.namespace + "/pods"
	if err := k.do(http.MethodGet, path, nil, &pods); err != nil {
		return err
	}
	agents := map[string]bool{}
	for _, pod := range pods.Items {
		if pod.component() == "agent" {
			agents[pod.Spec.NodeName] = true
		}
	}
	for _, pod := range pods.Items {
		own := path + "/" + pod.Metadata.Name
		if pod.Spec.NodeName == "" {
			if node := k.place(pod, ready, agents); node != "" {
				binding := map[string]any{"metadata": map[string]any{"name": pod.Metadata.Name}, "target": map[string]any{"kind": "Node", "name": node}}
				_ = k.do(http.MethodPost, own+"/binding", binding, nil)
			}
			continue
		}
		if !ready[pod.Spec.NodeName] {
			continue
		}
		switch {
		case pod.Metadata.DeletionTimestamp != "":
			_ = k.do(http.MethodDelete, own+"?gracePeriodSeconds=0", nil, nil)
			k.happened(pod.component() + " ended on " + pod.Spec.NodeName)
		case pod.Spec.RestartPolicy == "Never":
			if pod.Status.Phase == "Pending" {
				k.run(pod, own)
			}
		case !pod.isReady():
			k.start(pod, own)
		}
	}
	return nil
}

func (k *kubelets) readyNodes() (map[string]bool, error) {
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := k.do(http.MethodGet, "/api/v1/nodes", nil, &nodes); err != nil {
		return nil, err
	}
	ready := map[string]bool{}
	for _, node := range nodes.Items {
		for _, condition := range node.Status.Conditions {
			ready[node.Metadata.Name] = condition.Type == "Ready" && condition.Status == "True"
		}
	}
	return ready, nil
}

// place is the node for a pod: the one that its DaemonSet made it for, else the first that is ready. A cleanup does not come
// beside an agent, as its anti-affinity says.
func (k *kubelets) place(pod pod, ready, agents map[string]bool) string {
	for _, term := range pod.Spec.Affinity.NodeAffinity.Required.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if node := field.Values[0]; pod.component() != "cleanup" || !agents[node] {
				return node
			}
			return ""
		}
	}
	for _, node := range slices.Sorted(maps.Keys(ready)) {
		if ready[node] {
			return node
		}
	}
	return ""
}

// start is what a kubelet reports of a pod of a DaemonSet.
func (k *kubelets) start(pod pod, path string) {
	k.mutex.Lock()
	message, isStuck := k.stuck[pod.Spec.NodeName]
	k.mutex.Unlock()
	// Since when decides whether a Deployment counts it as available.
	ready := map[string]any{"type": "Ready", "status": "True", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339)}
	status := map[string]any{"phase": "Running", "conditions": []any{ready}}
	if isStuck && pod.component() == "cleanup" {
		failed := map[string]any{"terminated": map[string]any{"exitCode": 1, "message": message}}
		status = map[string]any{"phase": "Pending", "initContainerStatuses": []any{map[string]any{
			"name": "cleanup", "image": "x", "imageID": "x", "ready": false, "restartCount": 3,
			"state": map[string]any{"waiting": map[string]any{"reason": "CrashLoopBackOff"}}, "lastState": failed,
		}}}
	}
	_ = k.do(http.MethodPatch, path+"/status", map[string]any{"status": status}, nil)
	if !isStuck {
		k.happened(pod.component() + " ready on " + pod.Spec.NodeName)
	}
}

// run runs the program of a pod to its end, with what is mounted from the ConfigMap of the same name.
func (k *kubelets) run(pod pod, path string) {
	_ = k.do(http.MethodPatch, path+"/status", map[string]any{"status": map[string]any{"phase": "Running"}}, nil)
	go func() {
		code, output := k.program(pod)
		k.mutex.Lock()
		k.output[pod.Metadata.Name] = output
		k.mutex.Unlock()
		phase := "Succeeded"
		if code != 0 {
			phase = "Failed"
		}
		ended := map[string]any{"terminated": map[string]any{"exitCode": code, "message": output}}
		status := map[string]any{"phase": phase, "containerStatuses": []any{map[string]any{
			"name": pod.component(), "image": "x", "imageID": "x", "ready": false, "restartCount": 0, "state": ended,
		}}}
		_ = k.do(http.MethodPatch, path+"/status", map[string]any{"status": status}, nil)
	}()
}

func (k *kubelets) program(pod pod) (int, string) {
	directory, err := os.MkdirTemp("", "job-")
	if err != nil {
		return 126, err.Error()
	}
	token, err := k.cluster.Token(k.namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return 126, err.Error()
	}
	kubeconfig := filepath.Join(directory, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(k.cluster.KubeconfigWith(token)), 0o600); err != nil {
		return 126, err.Error()
	}
	arguments := slices.Clone(pod.Spec.Containers[0].Args)
	for index, argument := range arguments {
		mounted, ok := strings.CutPrefix(argument, "--cleanup-manifest=/etc/pinhole/uninstall/")
		if !ok {
			continue
		}
		var configMap struct{ Data map[string]string }
		if err := k.do(http.MethodGet, "/api/v1/namespaces/"+k.namespace+"/configmaps/"+pod.Spec.ServiceAccountName, nil, &configMap); err != nil {
			return 126, err.Error()
		}
		file := filepath.Join(directory, mounted)
		if err := os.WriteFile(file, []byte(configMap.Data[mounted]), 0o600); err != nil {
			return 126, err.Error()
		}
		arguments[index] = "--cleanup-manifest=" + file
	}
	command := exec.Command(os.Getenv("PINHOLE_BIN"), append(arguments, "--kubeconfig="+kubeconfig)...)
	output, err := command.CombinedOutput()
	if command.ProcessState == nil {
		return 126, fmt.Sprint(err)
	}
	return command.ProcessState.ExitCode(), string(output)
}

func (k *kubelets) happened(event string) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if !slices.Contains(k.events, event) {
		k.events = append(k.events, event)
	}
}

// history is what happened on the nodes so far, in order.
func (k *kubelets) history() []string {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return slices.Clone(k.events)
}

// told is everything that the Jobs' programs wrote.
func (k *kubelets) told() string {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	var text strings.Builder
	for _, output := range k.output {
		text.WriteString(output)
	}
	return text.String()
}

// stick keeps the cleanup of a node from becoming ready; without a message it goes on.
func (k *kubelets) stick(node, message string) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if message == "" {
		delete(k.stuck, node)
	} else {
		k.stuck[node] = message
	}
}

// node makes a node, or says anew whether it is ready.
func (k *kubelets) node(name string, isReady bool) {
	k.t.Helper()
	body := map[string]any{"metadata": map[string]any{"name": name, "labels": map[string]any{"kubernetes.io/os": "linux"}}}
	_ = k.do(http.MethodPost, "/api/v1/nodes", body, nil)
	condition := map[string]any{"type": "Ready", "status": "True"}
	if !isReady {
		condition = map[string]any{"type": "Ready", "status": "Unknown", "message": "kubelet stopped posting node status"}
	}
	status := map[string]any{"status": map[string]any{"conditions": []any{condition}}}
	if err := k.do(http.MethodPatch, "/api/v1/nodes/"+name+"/status", status, nil); err != nil {
		k.t.Fatal(err)
	}
}

// awaitReady waits until a DaemonSet has a ready pod on each of so many nodes.
func (k *kubelets) awaitReady(component string, nodes int) {
	k.t.Helper()
	err := lab.Poll(30*time.Second, func() error {
		var pods struct{ Items []pod }
		query := "/api/v1/namespaces/" + k.namespace + "/pods?labelSelector=app.kubernetes.io/component=" + component
		if err := k.do(http.MethodGet, query, nil, &pods); err != nil {
			return err
		}
		ready := 0
		for _, pod := range pods.Items {
			if pod.isReady() {
				ready++
			}
		}
		if ready != nodes {
			return fmt.Errorf("%d of %d pods of the %s are ready", ready, nodes, component)
		}
		return nil
	})
	if err != nil {
		k.t.Fatal(err)
	}
}
