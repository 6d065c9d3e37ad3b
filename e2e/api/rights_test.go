package api

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// rightsTest runs after all others, see TestMain.
const rightsTest = "TestEveryRightIsUsedAndNoneIsMissed"

// right is one verb of one ServiceAccount on one resource: "pinhole-agent: get apps/replicasets".
type right string

func newRight(account, verb, group, resource string) right {
	if group != "" {
		resource = group + "/" + resource
	}
	return right(account + ": " + verb + " " + resource)
}

// What is tried although nobody grants it, because what follows from the refusal is said then.
var triedInVain = []right{
	// The webhook may fill its Secret and not make one; it says so when somebody has deleted it.
	"pinhole-webhook: create secrets",
}

// What the API server looks for inside of another call, so that no call shows it.
var askedForWithin = map[right]right{
	// An apply that makes an object.
	"pinhole-controller: create pinhole.dev/pinholes": "pinhole-controller: patch pinhole.dev/pinholes",
}

// Over the whole suite, what the shipped manifests grant is what webhook and agent use.
func TestEveryRightIsUsedAndNoneIsMissed(t *testing.T) {
	granted, used := map[right]bool{}, map[right]bool{}
	for _, cluster := range lab.Clusters() {
		for each := range grants(t, cluster) {
			granted[each] = true
		}
		events, err := cluster.Audit()
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range events {
			account, isOurs := strings.CutPrefix(event.User.Username, "system:serviceaccount:"+lab.WebhookNamespace+":")
			if !isOurs {
				continue
			}
			resource := event.ObjectRef.Resource
			if event.ObjectRef.Subresource != "" {
				resource += "/" + event.ObjectRef.Subresource
			}
			this := newRight(account, event.Verb, event.ObjectRef.APIGroup, resource)
			switch {
			case event.ResponseStatus.Code != http.StatusForbidden:
				used[this] = true
			case !slices.Contains(triedInVain, this):
				t.Errorf("cluster %s: it was forbidden to %s: chart/templates/rbac.yaml lacks that", cluster.Name, this)
			}
		}
	}
	if len(granted) < 20 {
		t.Errorf("only %d rights were found in the manifests: %v", len(granted), slices.Sorted(maps.Keys(granted)))
	}
	for _, each := range slices.Sorted(maps.Keys(granted)) {
		if !used[each] && !used[askedForWithin[each]] {
			t.Errorf("nothing uses %s: remove it from chart/templates/rbac.yaml, or test what needs it", each)
		}
	}
	t.Logf("%d rights are granted, %d are used", len(granted), len(used))
}

// grants are the rights of Pinhole's ServiceAccounts in a cluster.
func grants(t *testing.T, cluster *lab.Cluster) map[right]bool {
	t.Helper()
	found := map[right]bool{}
	const api = "/apis/rbac.authorization.k8s.io/v1/"
	get := func(path string, out any) {
		t.Helper()
		if err := cluster.Do(context.Background(), 0, http.MethodGet, api+path, nil, out); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{"rolebindings", "clusterrolebindings"} {
		var bindings struct {
			Items []struct {
				Metadata struct{ Namespace string }
				Subjects []struct{ Kind, Namespace, Name string }
				RoleRef  struct{ Kind, Name string }
			}
		}
		get(kind, &bindings)
		for _, binding := range bindings.Items {
			path := "clusterroles/" + binding.RoleRef.Name
			if binding.RoleRef.Kind == "Role" {
				path = "namespaces/" + binding.Metadata.Namespace + "/roles/" + binding.RoleRef.Name
			}
			for _, subject := range binding.Subjects {
				if subject.Kind != "ServiceAccount" || subject.Namespace != lab.WebhookNamespace {
					continue
				}
				var role struct {
					Rules []struct{ Verbs, APIGroups, Resources []string }
				}
				get(path, &role)
				for _, rule := range role.Rules {
					for _, group := range rule.APIGroups {
						for _, resource := range rule.Resources {
							for _, verb := range rule.Verbs {
								found[newRight(subject.Name, verb, group, resource)] = true
							}
						}
					}
				}
			}
		}
	}
	return found
}
