package api

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
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

func TestPoolsGrantPortsAndSayWhyTheyDoNot(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "shop")
	other := newClerk(t, "shop-next-door")
	c.refuses("early", "198.51.100.7:1024", "198.51.100.7:1024/tcp: is on 198.51.100.7, which no NatPool has",
		"this namespace may use documentation (192.0.2.0/24, 203.0.113.33: 1-65535), node-addresses (each node's own address: 1-65535)")

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
			if code, _ := c.create("", asking(name, "198.51.100.7:"+[]string{"11", "12"}[racer%2]+string(rune('0'+racer/10))+string(rune('0'+racer%10)))); code == http.StatusCreated {
				granted.Add(1)
			}
		}()
	}
	asked.Wait()
	if claims := len(c.claims("198.51.100.7")); 12 < claims || int64(claims) != granted.Load()+2 {
		t.Errorf("%d claims for %d pods and two more, with a quota of 12", claims, granted.Load())
	}
	c.refuses("too-much", "198.51.100.7:1600-1611", "needs 12 more of NatPool shop, of which this namespace holds", "and may hold 12 ports")

	// A pool that admits nobody any more blocks nothing that is stored.
	c.must(http.MethodPatch, poolsPath+"/shop", object{"spec": object{"namespaces": object{"names": nil}}}, nil)
	c.refuses("late", "198.51.100.7:1700", "does not admit this namespace")
	c.must(http.MethodPatch, c.podsPath()+"/first", object{"metadata": object{"labels": notes{"a": "b"}}}, nil)
}
