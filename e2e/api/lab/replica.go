package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Replica is one running `pinhole webhook`, standing in for a pod of the shipped Deployment.
type Replica struct {
	*Process
	address string
	// ListedWhenUnready keeps the replica in the EndpointSlice whatever its readiness says.
	listedWhenUnready bool
}

// ReplicaOptions change how a replica is started.
type ReplicaOptions struct {
	// APIServer is the address:port where it finds the API server, for a proxy in between; empty for the direct way.
	APIServer string
	// ListedWhenUnready sends it calls even before it is ready.
	ListedWhenUnready bool
	// Volume holds its certificate; nil for one of its own, from the cluster's authority.
	Volume *Volume
	// Arguments come after those of the shipped Deployment.
	Arguments []string
}

// StartReplica starts a webhook with the arguments of the shipped Deployment and the rights of its ServiceAccount.
func (c *Cluster) StartReplica(options ReplicaOptions) (*Replica, error) {
	c.mutex.Lock()
	c.started++
	number := c.started
	c.mutex.Unlock()
	// Every replica gets an address of its own, as every pod does.
	address := c.address(100 + number)
	if err := addAddress(address); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("webhook-%d", number)
	directory := filepath.Join(c.directory, name)
	if err := c.Authority.issueInto(directory, WebhookHost); err != nil {
		return nil, err
	}
	certificates := directory
	if options.Volume != nil {
		certificates = options.Volume.Directory
	}
	url := c.url(0)
	if options.APIServer != "" {
		url = "https://" + options.APIServer
	}
	kubeconfig := filepath.Join(directory, "kubeconfig")
	if err := c.serviceAccountKubeconfig("pinhole-webhook", url, kubeconfig); err != nil {
		return nil, err
	}
	arguments := slices.Clone(c.webhookArgs)
	for index := range arguments {
		arguments[index] = strings.Replace(arguments[index], "/etc/pinhole/tls", certificates, 1)
	}
	arguments = append(arguments, "--listen="+address+":8443", "--http-address="+address+":8484", "--kubeconfig="+kubeconfig)
	process, err := startProcess(name, directory, nil, c.pinhole, append(arguments, options.Arguments...)...)
	if err != nil {
		return nil, err
	}
	replica := &Replica{process, address, options.ListedWhenUnready}
	c.mutex.Lock()
	c.replicas[replica] = struct{}{}
	c.mutex.Unlock()
	return replica, nil
}

// StartReadyReplica starts a webhook and waits until the API servers may call it. The arguments come after those of the
// shipped Deployment.
func (c *Cluster) StartReadyReplica(arguments ...string) (*Replica, error) {
	return c.startReady(ReplicaOptions{Arguments: arguments})
}

// StartReadyReplicaWith is the same for a replica whose certificate lies in a volume.
func (c *Cluster) StartReadyReplicaWith(volume *Volume) (*Replica, error) {
	return c.startReady(ReplicaOptions{Volume: volume})
}

func (c *Cluster) startReady(options ReplicaOptions) (*Replica, error) {
	replica, err := c.StartReplica(options)
	if err != nil {
		return nil, err
	}
	if err := c.AwaitListed(replica); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, replica.LogTail())
	}
	return replica, nil
}

// AwaitListed waits until every API server sends calls to this replica, among others.
func (c *Cluster) AwaitListed(replica *Replica) error {
	return Poll(30*time.Second, func() error {
		if replica.Exited() {
			return fmt.Errorf("%s ended", replica.Name)
		}
		listed, err := c.listedEndpoints()
		if err == nil && !slices.Contains(listed, replica.address) {
			err = fmt.Errorf("%s is not in the EndpointSlice, which has %v", replica.Name, listed)
		}
		return err
	})
}

// StopReplicas ends all replicas at once, as a crash would, and waits until the cluster knows.
func (c *Cluster) StopReplicas() error {
	c.mutex.Lock()
	for replica := range c.replicas {
		if !replica.Exited() {
			replica.Kill()
		}
	}
	c.mutex.Unlock()
	return Poll(30*time.Second, func() error {
		listed, err := c.listedEndpoints()
		if err == nil && len(listed) != 0 {
			err = fmt.Errorf("the EndpointSlice still has %v", listed)
		}
		return err
	})
}

// Dial says whether the replica takes connections for calls.
func (c *Cluster) Dial(replica *Replica) error {
	return replica.DialAs(c.Authority.pool(), 0)
}

// Metrics is the text of the replica's /metrics.
func (r *Replica) Metrics() (string, error) {
	response, err := http.Get("http://" + r.address + ":8484/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

func (r *Replica) ready(client *http.Client) bool {
	if r.Exited() {
		return false
	}
	if r.listedWhenUnready {
		return true
	}
	response, err := client.Get("http://" + r.address + ":8484/readyz")
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

const endpointSlicePath = "/apis/discovery.k8s.io/v1/namespaces/" + WebhookNamespace + "/endpointslices"

type endpointSlice struct {
	APIVersion  string            `json:"apiVersion"`
	Kind        string            `json:"kind"`
	Metadata    map[string]any    `json:"metadata"`
	AddressType string            `json:"addressType"`
	Ports       []map[string]any  `json:"ports"`
	Endpoints   []serviceEndpoint `json:"endpoints"`
}

type serviceEndpoint struct {
	Addresses  []string        `json:"addresses"`
	Conditions map[string]bool `json:"conditions"`
}

func (c *Cluster) listedEndpoints() ([]string, error) {
	var slice endpointSlice
	if err := c.Do(context.Background(), 0, http.MethodGet, endpointSlicePath+"/"+webhookService, nil, &slice); err != nil {
		return nil, err
	}
	var addresses []string
	for _, endpoint := range slice.Endpoints {
		addresses = append(addresses, endpoint.Addresses...)
	}
	return addresses, nil
}

// keepEndpoints does what kubelet and the EndpointSlice controller do in a full cluster: it lists the replicas that say
// they are ready, and is late by up to a probe's period.
func (c *Cluster) keepEndpoints() {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var current []byte
	for {
		c.mutex.Lock()
		replicas := make([]*Replica, 0, len(c.replicas))
		for replica := range c.replicas {
			replicas = append(replicas, replica)
		}
		c.mutex.Unlock()
		slices.SortFunc(replicas, func(a, b *Replica) int { return strings.Compare(a.address, b.address) })
		endpoints := []serviceEndpoint{}
		for _, replica := range replicas {
			if replica.ready(client) {
				endpoints = append(endpoints, serviceEndpoint{[]string{replica.address}, map[string]bool{"ready": true}})
			}
		}
		if wanted, err := json.Marshal(endpoints); err == nil && string(wanted) != string(current) {
			if err := c.writeEndpoints(endpoints); err == nil {
				current = wanted
			}
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func (c *Cluster) writeEndpoints(endpoints []serviceEndpoint) error {
	slice := endpointSlice{
		APIVersion: "discovery.k8s.io/v1",
		Kind:       "EndpointSlice",
		Metadata: map[string]any{
			"name":   webhookService,
			"labels": map[string]string{"kubernetes.io/service-name": webhookService},
		},
		AddressType: "IPv4",
		Ports:       []map[string]any{{"name": "https", "port": 8443, "protocol": "TCP"}},
		Endpoints:   endpoints,
	}
	if err := c.put(endpointSlicePath, slice, map[string]any{"endpoints": endpoints}); err != nil {
		return err
	}
	// Older API servers find a webhook by this, and a full cluster has both.
	subsets := []map[string]any{}
	if len(endpoints) != 0 {
		addresses := []map[string]string{}
		for _, endpoint := range endpoints {
			addresses = append(addresses, map[string]string{"ip": endpoint.Addresses[0]})
		}
		subsets = append(subsets, map[string]any{"addresses": addresses, "ports": slice.Ports})
	}
	object := map[string]any{"metadata": map[string]any{"name": webhookService}, "subsets": subsets}
	return c.put("/api/v1/namespaces/"+WebhookNamespace+"/endpoints", object, map[string]any{"subsets": subsets})
}

// put creates the webhook's object at a path, or changes the one that is there.
func (c *Cluster) put(path string, object any, change map[string]any) error {
	err := c.Do(context.Background(), 0, http.MethodPost, path, object, nil)
	var status *StatusError
	if errors.As(err, &status) && status.Code == http.StatusConflict {
		return c.Do(context.Background(), 0, http.MethodPatch, path+"/"+webhookService, change, nil)
	}
	return err
}
