package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"
)

// Agent is a running `pinhole agent`. The sandbox is its node: the rules that it writes are those of the sandbox.
type Agent struct {
	*Process
	health  string
	entries string
}

// AddNodeAddress makes an address one of the node that an agent runs on.
func AddNodeAddress(address string) error { return addAddress(address) }

// RemoveNodeAddress takes it away.
func RemoveNodeAddress(address string) error {
	return run("ip address delete " + address + "/32 dev lo")
}

// StartAgent starts an agent for a node with the arguments of the shipped DaemonSet and the rights of its
// ServiceAccount. Further arguments come after those.
func (c *Cluster) StartAgent(node string, further ...string) (*Agent, error) {
	arguments, err := c.shippedArguments("daemonsets/pinhole-agent")
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(c.directory, "agent.kubeconfig")
	if err := c.serviceAccountKubeconfig("pinhole-agent", c.url(0), kubeconfig); err != nil {
		return nil, err
	}
	agent := &Agent{health: "127.0.0.1:8484", entries: "127.0.0.1:8485"}
	arguments = append(arguments, "--kubeconfig="+kubeconfig, "--http-address="+agent.health, "--entries-address="+agent.entries)
	arguments = append(arguments, further...)
	agent.Process, err = startProcess("agent", c.directory, []string{"PINHOLE_NODE_NAME=" + node}, c.pinhole, arguments...)
	return agent, err
}

// CleanNode takes out of the kernel what an agent has left there.
func (c *Cluster) CleanNode() error {
	output, err := exec.Command(c.pinhole, "cleanup").CombinedOutput()
	if err != nil {
		return fmt.Errorf("pinhole cleanup: %w\n%s", err, output)
	}
	return nil
}

// AwaitReady waits until the kernel has what the pods of the node ask for.
func (a *Agent) AwaitReady() error {
	return Poll(30*time.Second, func() error {
		if a.Exited() {
			return fmt.Errorf("the agent ended\n%s", a.LogTail())
		}
		_, err := get("http://" + a.health + "/readyz")
		return err
	})
}

// Entries is what the agent says it has programmed.
func (a *Agent) Entries() (string, error) {
	text, err := get("http://" + a.entries + "/entries")
	if err != nil {
		return "", err
	}
	if !json.Valid([]byte(text)) {
		return "", fmt.Errorf("/entries is not JSON: %s", text)
	}
	return text, nil
}

func get(url string) (string, error) {
	response, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, response.Status, text)
	}
	return string(text), err
}
