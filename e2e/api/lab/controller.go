package lab

import (
	"fmt"
	"path/filepath"
	"time"
)

// Controller is a running `pinhole controller`.
type Controller struct {
	*Process
	url string
}

// Metrics are what it tells of itself.
func (c Controller) Metrics() (string, error) { return get(c.url + "/metrics") }

// StartController starts `pinhole controller` with the arguments of the shipped Deployment and the rights of its
// ServiceAccount, and more arguments, and waits until it knows the cluster.
func (c *Cluster) StartController(more ...string) (*Controller, error) {
	c.mutex.Lock()
	c.started++
	number := c.started
	c.mutex.Unlock()
	address := c.address(100 + number)
	if err := addAddress(address); err != nil {
		return nil, err
	}
	arguments, err := c.shippedArguments("deployments/pinhole-controller")
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("controller-%d", number)
	kubeconfig := filepath.Join(c.directory, name+".kubeconfig")
	if err := c.serviceAccountKubeconfig("pinhole-controller", c.url(0), kubeconfig); err != nil {
		return nil, err
	}
	arguments = append(append(arguments, more...), "--kubeconfig="+kubeconfig, "--http-address="+address+":8484")
	process, err := startProcess(name, c.directory, nil, c.pinhole, arguments...)
	if err != nil {
		return nil, err
	}
	controller := &Controller{process, "http://" + address + ":8484"}
	err = Poll(30*time.Second, func() error {
		if process.Exited() {
			return fmt.Errorf("the controller ended\n%s", process.LogTail())
		}
		_, err := get(controller.url + "/readyz")
		return err
	})
	return controller, err
}
