package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// leads is a Pinhole to the Service web.
func leads(name, address, ports string) string {
	return pinhole(name, "target: {service: web}, addresses: ["+address+"], ports: ["+ports+"]")
}

// serves makes the Service web, whose port https leads to port 8443 of a pod.
func (c clerk) serves(pod, address, node string) {
	c.t.Helper()
	c.must(http.MethodPost, "/api/v1/namespaces/"+c.namespace+"/services", object{
		"metadata": object{"name": "web"},
		"spec":     object{"clusterIP": "None", "ports": []object{{"name": "https", "port": 443, "targetPort": 8443}}},
	}, nil)
	c.must(http.MethodPost, "/apis/discovery.k8s.io/v1/namespaces/"+c.namespace+"/endpointslices", object{
		"metadata":    object{"name": "web-1", "labels": notes{"kubernetes.io/service-name": "web"}},
		"addressType": "IPv4", "ports": []object{{"name": "https", "port": 8443, "protocol": "TCP"}},
		"endpoints": []object{{"addresses": []string{address}, "nodeName": node, "conditions": object{"ready": true},
			"targetRef": object{"kind": "Pod", "namespace": c.namespace, "name": pod, "uid": "uid-" + pod}}},
	}, nil)
}

func (c clerk) refused(manifest, expected string) {
	c.t.Helper()
	if said, created := c.kubectl(manifest, "apply", "-f", "-"); created || !strings.Contains(said, expected) {
		c.t.Errorf("created: %v, expected a refusal with %q\n%s", created, expected, said)
	}
}

func (c clerk) applied(manifest string, arguments ...string) {
	c.t.Helper()
	if said, applied := c.kubectl(manifest, append([]string{"apply", "-f", "-"}, arguments...)...); !applied {
		c.t.Fatal(said)
	}
}

func (c clerk) claimed(name string) bool {
	c.t.Helper()
	said, _ := c.kubectl("", "get", "portclaim", name, "-o", "jsonpath={.spec.holder.kind} {.spec.holder.namespace}/{.spec.holder.name}")
	return strings.HasPrefix(said, "Pinhole "+c.namespace+"/")
}

func TestAPinholeOfAUserIsDecidedOnLikeAnAnnotatedPod(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "written")
	c.refused(leads("web", "192.0.2.80", "{port: 22}"), "spec.ports[0].port: 192.0.2.80:22/tcp: is restricted in this cluster")
	c.refused(leads("web", "198.51.100.80", "{port: 443}"), "is on 198.51.100.80, which no NatPool has; this namespace may use")
	c.refused(pinhole("web", "target: {service: web}, ports: [{port: 443}]"), "spec.addresses: is needed")

	c.applied(leads("web", "192.0.2.80", "{port: 443}, {port: 80}"), "--dry-run=server")
	if c.claimed("v4-192-0-2-80-tcp-443") {
		t.Error("a dry run claimed a port")
	}
	c.applied(leads("web", "192.0.2.80", "{port: 443}, {port: 80}"))
	if !c.claimed("v4-192-0-2-80-tcp-443") || !c.claimed("v4-192-0-2-80-tcp-80") {
		t.Error("the ports of the Pinhole are not claimed")
	}
	c.refused(leads("other", "192.0.2.80", "{port: 443}"), "192.0.2.80:443/tcp: is held by Pinhole written/web")
	if code, said := c.create("", asking("mx", "192.0.2.80:443")); code != http.StatusUnprocessableEntity ||
		!strings.Contains(said, "by Pinhole written/web") {
		t.Errorf("HTTP %d: %s", code, said)
	}
	c.placed("mx", "192.0.2.80:25")
	c.refused(leads("web", "192.0.2.80", "{port: 443}, {port: 25}"), "is held by Pod written/mx")

	c.applied(leads("web", "192.0.2.80", "{port: 443}, {port: 81}"))
	if !c.claimed("v4-192-0-2-80-tcp-81") {
		t.Error("a port that came by an update is not claimed")
	}
	c.eventuallyShown("web", "web 192.0.2.80:443/tcp +1 Service web:443  Pinhole web False NoService")
	if err := lab.Poll(patience, func() error {
		said, _ := c.kubectl("", "get", "ph", "web", "-o", "jsonpath={.status.observedGeneration} {.status.endpoints[*].port}")
		if said != "2 443 81" {
			return fmt.Errorf("the status is of another generation: %s", said)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := lab.Poll(patience, func() error {
		said, _ := c.kubectl("", "get", "events", "--field-selector=involvedObject.kind=Pinhole")
		if !strings.Contains(said, "there is no Service web") {
			return fmt.Errorf("the events are:\n%s", said)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestAPinholeFollowsItsServiceAndKeepsWhatItsUserWrote(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "follows")
	c.applied(leads("web", "192.0.2.81", "{name: shop, port: 443, targetPort: https}"))
	c.eventuallyShown("web", "False NoService")
	c.serves("web-1", "10.244.7.9", "node-7")
	c.eventuallyShown("web", "web 192.0.2.81:443/tcp Service web:https  Pinhole web False NoNode")
	said, _ := c.kubectl("", "get", "ph", "web", "-o",
		"jsonpath={.status.endpoints[0].name} {.status.endpoints[0].targetPort} {.status.endpoints[0].pool} {.status.targets[0].pod} {.spec}")
	const spec = `"ports":[{"name":"shop","port":443,"protocol":"TCP","targetPort":"https"}]`
	if !strings.HasPrefix(said, "shop 8443 documentation web-1 ") || !strings.Contains(said, spec) {
		t.Errorf("the Pinhole has %s", said)
	}
	c.must(http.MethodDelete, "/api/v1/namespaces/follows/services/web", nil, nil)
	c.eventuallyShown("web", "False NoService")

	// A label that only the controller may write does not stand in the way of the status.
	labelled := strings.Replace(leads("copied", "192.0.2.86", "{port: 443}"), "metadata: {", "metadata: {labels: {node.pinhole.dev/node-9: mine, team: web}, ", 1)
	if said, created := c.kubectl(labelled, "create", "-f", "-"); !created || labelled == leads("copied", "192.0.2.86", "{port: 443}") {
		t.Fatal(said)
	}
	c.eventuallyShown("copied", "copied 192.0.2.86:443/tcp")
	// Until then it looks as if that node served it.
	if err := lab.Poll(patience, func() error {
		if said, _ := c.kubectl("", "get", "ph", "copied", "-o", "jsonpath={.metadata.labels}"); said != `{"team":"web"}` {
			return fmt.Errorf("the labels of the copy are %s", said)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if said, allowed := c.kubectl("", "label", "ph", "copied", "node.pinhole.dev/node-9="); allowed || !strings.Contains(said, "are the controller's") {
		t.Errorf("a user changed the label: %s", said)
	}
	if said, allowed := c.kubectl("", "label", "ph", "copied", "team=mail", "--overwrite"); !allowed {
		t.Error(said)
	}

	// By label it leads to a pod without an annotation.
	c.must(http.MethodPost, c.podsPath(), object{"metadata": object{"name": "mx-0", "labels": notes{"app": "mx"}},
		"spec": object{"nodeName": "node-7", "containers": []object{{"name": "main", "image": "example.com/app:1"}}}}, nil)
	c.runs("mx-0", "10.244.7.10")
	c.applied(pinhole("mx", "target: {podSelector: {matchLabels: {app: mx}}}, addresses: [192.0.2.82], ports: [{port: 25}]"))
	c.eventuallyShown("mx", "mx 192.0.2.82:25/tcp app=mx:25  Pinhole mx False NoNode")
	if said, _ := c.kubectl("", "get", "ph", "mx", "-o", "jsonpath={.status.targets[0].pod} {.status.targets[0].active}"); said != "mx-0 true" {
		t.Errorf("the target is %s", said)
	}
}

func TestAPinholeIsHandedOverWhenItsUserSaysThatItIsTime(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "takes-over")
	runs := func(name, address, ready string) {
		t.Helper()
		c.must(http.MethodPost, c.podsPath(), object{"metadata": object{"name": name, "labels": notes{"app": "mx"}},
			"spec": object{"nodeName": "node-7", "containers": []object{{"name": "main", "image": "example.com/app:1"}}}}, nil)
		c.kubelet(name, address, ready)
	}
	leadsTo := func(name, expected string) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			said, _ := c.kubectl("", "get", "ph", name, "-o", "jsonpath={.status.targets[?(@.active==true)].pod}")
			if said != expected {
				return fmt.Errorf("%s leads to %q, expected %s", name, said, expected)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	runs("mx-0", "10.244.7.20", "True")
	for port, handover := range []string{"Immediate", "WhenGone", "WhenReady"} {
		name := strings.ToLower(handover)
		c.applied(pinhole(name, fmt.Sprintf("target: {podSelector: {matchLabels: {app: mx}}}, addresses: [192.0.2.84], ports: [{port: %d}], handover: %s", 25+port, handover)))
		leadsTo(name, "mx-0")
	}
	// Of two pods of one second neither is the newer one.
	time.Sleep(1100 * time.Millisecond)
	runs("mx-1", "10.244.7.21", "False")
	leadsTo("immediate", "mx-1")
	leadsTo("whenready", "mx-0")
	c.kubelet("mx-0", "10.244.7.20", "False")
	c.kubelet("mx-1", "10.244.7.21", "True")
	leadsTo("whenready", "mx-1")
	leadsTo("whengone", "mx-0")
	c.must(http.MethodDelete, c.podsPath()+"/mx-0", object{"gracePeriodSeconds": 0}, nil)
	leadsTo("whengone", "mx-1")
}

func TestAnAgentServesAPinholeThatAUserWrote(t *testing.T) {
	c := newClerk(t, "served")
	t.Cleanup(func() { c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/natnodes/node-1", nil, nil) })
	agent := c.startAgent("192.0.2.83", "--nat-node")
	c.serves("web-1", "10.244.2.9", "node-2")
	c.applied(leads("web", "192.0.2.83", "{port: 443, targetPort: https}"))
	if said, programmed := c.kubectl("", "wait", "--for=condition=Programmed", "ph/web", "--timeout=30s"); !programmed {
		t.Fatalf("%s\n%s", said, c.shown("web"))
	}
	c.eventuallyShown("web", "web 192.0.2.83:443/tcp Service web:https node-1 Pinhole web True Programmed")
	if entries, err := agent.Entries(); err != nil || !strings.Contains(entries, "10.244.2.9") {
		t.Errorf("the kernel has %s, %v", entries, err)
	}
	if said, _ := c.kubectl("", "get", "ph", "web", "-o", "jsonpath={.metadata.labels}{.spec.egress}"); said != `{"node.pinhole.dev/node-1":""}Cluster` {
		t.Errorf("the user's object has %s", said)
	}

	// Its pod leaves with the address as soon as the user says so, and not before.
	const leaving = "10.244.2.9 (served/web) leaves the cluster as 192.0.2.83"
	if strings.Contains(agent.Log(), leaving) {
		t.Error("the pod leaves with the external address, and nobody asked for it")
	}
	if said, patched := c.kubectl("", "patch", "ph", "web", "--type=merge", "-p", `{"spec":{"egress":"External","udpHandover":"Cut"}}`); !patched {
		t.Fatal(said)
	}
	if err := lab.Poll(patience, func() error {
		if !strings.Contains(agent.Log(), leaving) {
			return fmt.Errorf("the agent does not say: %s", leaving)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	// It stays, and its port is nobody else's, until its node has let go.
	const claim = "v4-192-0-2-83-tcp-443"
	c.pause(true)
	c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/namespaces/served/pinholes/web", nil, nil)
	c.eventuallyShown("web", "False Releasing")
	if entries, err := agent.Entries(); err != nil || !strings.Contains(entries, "192.0.2.83") || !c.claimed(claim) {
		t.Errorf("the kernel of a paused node has %s, %v", entries, err)
	}
	c.pause(false)
	c.eventuallyShown("web", "NotFound")
	if err := lab.Poll(patience, func() error {
		entries, err := agent.Entries()
		if err == nil && strings.Contains(entries, "192.0.2.83") {
			err = fmt.Errorf("the kernel still has %s", entries)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
