package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// How long an agent may take to end: it has nothing to tidy up.
const agentPatience = 10 * time.Second

func TestTheAgentProgramsThePodsOfItsNodeAndTellsTheirOwners(t *testing.T) {
	d := newDesk(t, "agent")
	agent, err := d.cluster.StartAgent("node-1", "203.0.113.9")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(agent.LogTail())
		}
	})
	if err := agent.AwaitReady(); err != nil {
		t.Fatal(err)
	}

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

	d.succeeds("", "delete", "pod", "smtp", "--now", "--wait=false")
	d.keepHouse()
	d.eventually(func() error {
		entries, err := agent.Entries()
		if err == nil && strings.Contains(entries, "2525") {
			err = fmt.Errorf("still programmed: %s", entries)
		}
		return err
	})

	events, err := d.cluster.Audit()
	if err != nil {
		t.Fatal(err)
	}
	watched := false
	for _, event := range events {
		if event.User.Username != "system:serviceaccount:pinhole-system:pinhole-agent" {
			continue
		}
		if event.ResponseStatus.Code == http.StatusForbidden {
			t.Errorf("the agent was forbidden to %s %s: chart/templates/rbac.yaml lacks that", event.Verb, event.ObjectRef.Resource)
		}
		isCreatedEvent := event.Verb == "create" && event.ObjectRef.Resource == "events"
		if event.Verb != "get" && event.Verb != "list" && event.Verb != "watch" && !isCreatedEvent {
			t.Errorf("the agent asked to %s %s", event.Verb, event.ObjectRef.Resource)
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
	if err := agent.Stop(agentPatience); err != nil {
		t.Error(err)
	}
}
