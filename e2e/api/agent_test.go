package api

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// How long an agent may take to end: it has nothing to tidy up.
const agentPatience = 10 * time.Second

func TestTheAgentProgramsThePodsOfItsNodeAndTellsTheirOwners(t *testing.T) {
	d := newDesk(t, "agent")
	if err := lab.AddNodeAddress("203.0.113.9"); err != nil {
		t.Fatal(err)
	}
	agent := d.startAgent()

	d.accepted(pod("smtp", expose("203.0.113.9:2525:25"), "nodeName: node-1"))
	d.accepted(pod("elsewhere", expose("203.0.113.9:2526:25"), "nodeName: node-2"))
	d.reportStatus("smtp", "Running")
	d.reportStatus("elsewhere", "Running")
	d.eventually(func() error {
		said := d.kubectl("", "get", "events", "--field-selector=involvedObject.name=smtp",
			"--output=custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message").Stdout
		if !strings.Contains(said, "203.0.113.9:2525/tcp -> 10.244.1.9:25 on node-1") || !strings.Contains(said, "Programmed") {
			return fmt.Errorf("the events of the pod are:\n%s", said)
		}
		return nil
	})
	entries, err := agent.Entries()
	if err != nil {
		t.Fatal(err)
	}
	d.mentions(entries, `"agent/smtp"`, "2525", "10.244.1.9")
	if strings.Contains(entries, "elsewhere") {
		t.Errorf("a pod of another node is programmed: %s", entries)
	}

	// Whose pods these are, their ReplicaSet and their Job say.
	d.accepted(workload("Deployment", "web", expose("203.0.113.9:2530:80"), "replicas: 1"))
	d.accepted(workload("Job", "backup", expose("203.0.113.9:2531:80")))
	d.eventually(func() error {
		d.keepHouse()
		return d.programmed(agent, "2530", "2531")
	})

	d.succeeds("", "delete", "pod", "smtp", "--now", "--wait=false")
	d.keepHouse()
	d.eventually(func() error {
		entries, err := agent.Entries()
		if err == nil && strings.Contains(entries, "2525") {
			err = fmt.Errorf("still programmed: %s", entries)
		}
		return err
	})
	if err := agent.Stop(agentPatience); err != nil {
		t.Error(err)
	}

	// An operator's selector decides by the namespaces' labels.
	d.succeeds("", "label", "namespace", d.namespace, "nat=yes")
	choosy := d.startAgent("--allowed-namespace-selector=nat=yes")
	d.eventually(func() error { return d.programmed(choosy, "2530", "2531") })
	d.succeeds("", "label", "namespace", d.namespace, "nat-")
	d.eventually(func() error {
		entries, err := choosy.Entries()
		if err == nil && strings.Contains(entries, "2530") {
			err = fmt.Errorf("a namespace without the label is served: %s", entries)
		}
		return err
	})
	if err := choosy.Stop(agentPatience); err != nil {
		t.Error(err)
	}

	events, err := d.cluster.Audit()
	if err != nil {
		t.Fatal(err)
	}
	watched := false
	for _, event := range events {
		if event.User.Username != "system:serviceaccount:pinhole-system:pinhole-agent" {
			continue
		}
		if event.ObjectRef.Resource == "pods" {
			watched = true
			if !strings.Contains(event.RequestURI, "fieldSelector=spec.nodeName%3Dnode-1") {
				t.Errorf("the agent looked at pods beyond its node: %s", event.RequestURI)
			}
		}
	}
	if !watched {
		t.Error("the audit log does not show that the agent looked at pods")
	}
}

// startAgent starts the agent of node-1 and waits until it has programmed what it knows.
func (d desk) startAgent(further ...string) *lab.Agent {
	d.t.Helper()
	agent, err := d.cluster.StartAgent("node-1", further...)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if d.t.Failed() {
			d.t.Log(agent.LogTail())
		}
	})
	if err := agent.AwaitReady(); err != nil {
		d.t.Fatal(err)
	}
	return agent
}

func (d desk) programmed(agent *lab.Agent, ports ...string) error {
	entries, err := agent.Entries()
	if err != nil {
		return err
	}
	for _, port := range ports {
		if !strings.Contains(entries, port) {
			return fmt.Errorf("%s is not programmed: %s", port, entries)
		}
	}
	return nil
}
