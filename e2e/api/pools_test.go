package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

const poolsPath = "/apis/pinhole.dev/v1alpha1/natpools"

var everyPort = []object{{"first": 1, "last": 65535}}

func natPool(name string, spec object) object {
	return object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatPool", "metadata": object{"name": name}, "spec": spec}
}

// grants asks for ports that must be granted.
func (c clerk) grants(name, ports string) {
	c.t.Helper()
	if code, said := c.create("", asking(name, ports)); code != http.StatusCreated {
		c.t.Errorf("%s: HTTP %d: %s", ports, code, said)
	}
}

// refuses asks for ports that must not be granted, and for a reason.
func (c clerk) refuses(name, ports string, words ...string) {
	c.t.Helper()
	code, said := c.create("", asking(name, ports))
	if code != http.StatusUnprocessableEntity {
		c.t.Errorf("%s: HTTP %d: %s", ports, code, said)
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			c.t.Errorf("%q is not in: %s", word, said)
		}
	}
}

// comesToRefuse asks for ports that must not be granted once every webhook's watches have shown why.
func (c clerk) comesToRefuse(ports string, words ...string) {
	c.t.Helper()
	refusals := 0
	if err := lab.Poll(patience, func() error {
		code, said := c.create("?dryRun=All", asking("taken", ports))
		if code != http.StatusUnprocessableEntity {
			refusals = 0
			return fmt.Errorf("%s: HTTP %d: %s", ports, code, said)
		}
		// Another replica may answer each time.
		if refusals++; refusals < 10 {
			return fmt.Errorf("%s: refused %d times in a row", ports, refusals)
		}
		return nil
	}); err != nil {
		c.t.Error(err)
	}
	c.refuses("taken", ports, words...)
}

func TestPoolsGrantPortsAndSayWhyTheyDoNot(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "shop")
	other := newClerk(t, "shop-next-door")
	c.refuses("early", "198.51.100.7:1024", "198.51.100.7:1024/tcp: is on 198.51.100.7, which no NatPool has",
		"; this namespace may use ", "documentation (192.0.2.0/24, 203.0.113.33: 1-65535)", "node-addresses (each node's own address: 1-65535)")

	// Used at once, whatever the webhooks' caches have seen.
	spec := object{
		"addresses": []string{"198.51.100.7"}, "ports": []object{{"first": 1024, "last": 2000}}, "namespaces": object{"names": []string{"shop"}},
		"reservedPorts": []object{{"first": 1500, "reason": "the till"}}, "quota": object{"portsPerNamespace": 12},
	}
	c.must(http.MethodPost, poolsPath, natPool("shop", spec), nil)
	c.grants("first", "198.51.100.7:1024")
	if pool := c.claims("198.51.100.7")["v4-198-51-100-7-tcp-1024"].Spec.Pool; pool != "shop" {
		t.Errorf("the claim is of the pool %q", pool)
	}
	c.refuses("low", "198.51.100.7:80", "is outside NatPool shop, which has 1024-2000; this namespace may use")
	c.refuses("till", "198.51.100.7:1499-1501", "is reserved in NatPool shop (1500: the till)")
	other.refuses("stranger", "198.51.100.7:1025", "is of NatPool shop, which does not admit this namespace or ServiceAccount; this namespace may use documentation")
	other.grants("node", "8080:80")

	// Ten of them fit, and no two of those that do not may slip in together.
	c.grants("second", "198.51.100.7:1030")
	var granted atomic.Int64
	var asked sync.WaitGroup
	for racer := range 20 {
		asked.Add(1)
		go func() {
			defer asked.Done()
			name := string(rune('a' + racer))
			switch code, said := c.create("", asking(name, fmt.Sprint("198.51.100.7:", 1100+racer))); code {
			case http.StatusCreated:
				granted.Add(1)
			case http.StatusUnprocessableEntity, http.StatusServiceUnavailable:
			default:
				// What a call that was cut off has claimed stays for a while.
				t.Logf("HTTP %d: %s", code, said)
			}
		}()
	}
	asked.Wait()
	if claims := len(c.claims("198.51.100.7")); 10 < granted.Load() || int64(claims) < granted.Load()+2 {
		t.Errorf("%d claims for %d pods and two more, with a quota of 12", claims, granted.Load())
	}
	c.refuses("too-much", "198.51.100.7:1600-1611", "needs 12 more of NatPool shop, of which this namespace holds", "and may hold 12 ports")

	// A pool that admits nobody any more blocks nothing that is stored.
	c.must(http.MethodPatch, poolsPath+"/shop", object{"spec": object{"namespaces": object{"names": nil}}}, nil)
	c.comesToRefuse("198.51.100.7:1700", "does not admit this namespace")
	c.must(http.MethodPatch, c.podsPath()+"/first", object{"metadata": object{"labels": notes{"a": "b"}}}, nil)
}

func TestWhatProgramsAndServicesHaveIsNotGranted(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "docks")
	service := object{
		"apiVersion": "v1", "kind": "Service", "metadata": object{"name": "crane"},
		"spec": object{"type": "NodePort", "externalIPs": []string{"192.0.2.99"}, "ports": []object{{"port": 443, "nodePort": 30443}}},
	}
	c.must(http.MethodPost, "/api/v1/namespaces/docks/services", service, nil)
	const path = "/apis/pinhole.dev/v1alpha1/natnodes"
	node := object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode", "metadata": object{"name": "quay"}, "spec": object{}}
	c.must(http.MethodPost, path, node, nil)
	t.Cleanup(func() { c.must(http.MethodDelete, path+"/quay", nil, nil) })
	c.must(http.MethodPatch, path+"/quay/status", object{"status": object{
		"addresses":  []object{{"address": "192.0.2.98", "own": true, "public": true}},
		"portsInUse": []object{{"protocol": "TCP", "first": 2222, "last": 2222, "by": "Socket"}},
	}}, nil)
	c.comesToRefuse("30443:443", "30443/tcp: is in use on every node by Service docks/crane (NodePort); choose another external port")
	c.comesToRefuse("192.0.2.99:443", "is in use on 192.0.2.99 by Service docks/crane (externalIPs)")
	c.comesToRefuse("192.0.2.98:2222", "is in use on node quay by a program that listens there (NatNode quay)")
	holder := asking("hosted", "")
	holder["metadata"] = object{"name": "hosted"}
	holder["spec"] = object{"nodeName": "quay", "containers": []object{
		{"name": "main", "image": "example.com/app:1", "ports": []object{{"containerPort": 80, "hostPort": 8888}}},
	}}
	if code, said := c.create("", holder); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	c.comesToRefuse("192.0.2.98:8888", "is in use on node quay by Pod docks/hosted (hostPort)")
	c.grants("free", "192.0.2.98:2223,192.0.2.97:443")
	// Whatever the webhooks' caches still say.
	c.must(http.MethodDelete, "/api/v1/namespaces/docks/services/crane", nil, nil)
	c.grants("late", "192.0.2.99:443")
	c.must(http.MethodDelete, c.podsPath()+"/hosted", object{"gracePeriodSeconds": 0}, nil)
	c.grants("last", "192.0.2.98:8888")
}

func TestThePortsThatServicesMayGetAreKeptOnAddressesOfNodes(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "pier")
	const address, shared = "198.51.100.34", poolsPath + "/pier"
	spec := object{
		"addresses": []string{address}, "ports": []object{{"first": 29999, "last": 30003, "staticBand": 0}}, "protocols": []string{"TCP"},
		"namespaces": object{"names": []string{"pier"}},
	}
	c.must(http.MethodPost, poolsPath, natPool("pier", spec), nil)
	// While no node has the address, nobody answers a NodePort there.
	c.grants("first", address+":30003")
	c.must(http.MethodPost, "/api/v1/nodes", object{"apiVersion": "v1", "kind": "Node", "metadata": object{"name": "pier"}}, nil)
	c.must(http.MethodPost, natNodesPath, object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode", "metadata": object{"name": "pier"}, "spec": object{}}, nil)
	t.Cleanup(func() {
		c.must(http.MethodDelete, natNodesPath+"/pier", nil, nil)
		c.must(http.MethodDelete, "/api/v1/nodes/pier", nil, nil)
	})
	c.calls("pier", address)
	c.comesToRefuse(address+":30001", address+":30001/tcp: overlaps the NodePort range (30000-32767), of which a Service may get any port on every node; "+
		"choose another external port, or have NatPool pier open it by a range of ports inside of it; this namespace may use")
	c.refuses("own", "30002:80", "30002/tcp: overlaps the NodePort range (30000-32767)")
	// What has one goes on.
	c.must(http.MethodPatch, c.podsPath()+"/first", object{"metadata": object{"labels": notes{"a": "b"}}}, nil)
	status := func(what string, holds func(storedPool) bool) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			var found storedPool
			if err := c.cluster.Do(t.Context(), 0, http.MethodGet, shared, nil, &found); err != nil {
				return err
			}
			if !holds(found) {
				return fmt.Errorf("%s: %+v", what, found)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	status("what is kept, and what was granted before that", func(p storedPool) bool {
		usage := p.Status.Usage
		return usage.Capacity == 1 && usage.Reserved == 4 && usage.OutOfRange == 1 &&
			strings.Contains(p.says("OutOfRange"), "1 claim of the NodePort range (30000-32767), such as v4-198-51-100-34-tcp-30003 of Pod pier/first")
	})

	found := func(name string) int {
		t.Helper()
		if code, said := c.create("", fromPool(name, "auto:80", "pier")); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
		return c.letGo(name).told(t)[0].Port
	}
	if port := found("lucky"); port != 29999 {
		t.Errorf("port %d was found, which a Service may get", port)
	}
	if code, said := c.create("", fromPool("late", "auto:80", "pier")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	c.eventuallyShown("late", "no address of NatPool pier has a free port outside the NodePort range (30000-32767); give ports up")

	// Whoever writes a range inside of it means it.
	opened := append(spec["ports"].([]object), object{"first": 30000, "last": 30001, "staticBand": 0})
	c.must(http.MethodPatch, shared, object{"spec": object{"ports": opened}}, nil)
	if told := c.letGo("late").told(t); told[0].Port != 30000 && told[0].Port != 30001 {
		t.Errorf("the pod was told %v", told)
	}
	c.refuses("between", address+":30001-30002", "overlaps the NodePort range")
	status("what is opened", func(p storedPool) bool { return p.Status.Usage.Capacity == 3 && p.Status.Usage.Reserved == 2 })
}

type storedPool struct {
	Metadata struct {
		Finalizers        []string
		DeletionTimestamp string
	}
	Status struct {
		Usage      struct{ Capacity, Used, Free, Reserved, OutOfRange int }
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

func (p storedPool) says(condition string) string {
	for _, each := range p.Status.Conditions {
		if each.Type == condition {
			return each.Status + " " + each.Reason + " " + each.Message
		}
	}
	return ""
}

func TestAPoolSaysHowFullItIsAndGoesAfterItsClaims(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "harbour")
	const path = poolsPath + "/harbour"
	spec := object{
		"addresses": []string{"198.51.100.33"}, "ports": []object{{"first": 2000, "last": 2009}}, "protocols": []string{"TCP"},
		"namespaces": object{"all": true}, "reservedPorts": []object{{"first": 2009}}, "cooldownSeconds": 0,
	}
	c.must(http.MethodPost, poolsPath, natPool("harbour", spec), nil)
	awaits := func(what string, holds func(storedPool) bool) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			var found storedPool
			if err := c.cluster.Do(t.Context(), 0, http.MethodGet, path, nil, &found); err != nil {
				return err
			}
			if !holds(found) {
				return fmt.Errorf("%s: %+v", what, found)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.grants("ship", "198.51.100.33:2000")
	awaits("its usage", func(p storedPool) bool {
		usage := p.Status.Usage
		return usage.Capacity == 9 && usage.Used == 1 && usage.Free == 8 && usage.Reserved == 1 && strings.HasPrefix(p.says("Ready"), "True") &&
			len(p.Metadata.Finalizers) == 1
	})

	c.must(http.MethodPatch, path, object{"spec": object{"ports": []object{{"first": 2001, "last": 2009}}}}, nil)
	awaits("it shrank", func(p storedPool) bool {
		return p.Status.Usage.OutOfRange == 1 && strings.Contains(p.says("OutOfRange"), "v4-198-51-100-33-tcp-2000 of Pod harbour/ship")
	})

	c.must(http.MethodDelete, path, nil, nil)
	awaits("it waits for its claim", func(p storedPool) bool {
		return p.Metadata.DeletionTimestamp != "" && strings.HasPrefix(p.says("Deleting"), "True WaitsForClaims")
	})
	c.refuses("late", "198.51.100.33:2002", "is of NatPool harbour, which is being deleted")
	c.must(http.MethodDelete, c.podsPath()+"/ship", object{"gracePeriodSeconds": 0}, nil)
	if err := lab.Poll(240*time.Second, func() error {
		err := c.cluster.Do(t.Context(), 0, http.MethodGet, path, nil, nil)
		var status *lab.StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			return nil
		}
		return fmt.Errorf("it is still there: %v", err)
	}); err != nil {
		t.Fatal(err)
	}
}
