package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

func TestTheControllerProvesThatTheWebhookDecides(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "proof")
	if err := lab.Poll(patience, func() error {
		var told []string
		for _, controller := range c.cluster.controllers {
			text, err := controller.Metrics()
			if err == nil && strings.Contains(text, "pinhole_controller_self_test_passed 1") &&
				strings.Contains(text, `pinhole_controller_self_tests_total{outcome="decided"}`) {
				return nil
			}
			told = append(told, fmt.Sprint(err, text))
		}
		return errors.New(strings.Join(told, "\n"))
	}); err != nil {
		t.Fatal(err)
	}

	// Nobody else refuses what the controller tries: without the webhook it would be accepted, and the test would fail.
	asking := object{
		"apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
		"metadata": object{"name": "asks-by-annotation", "annotations": notes{"pinhole.dev/expose": "25"}},
		"spec":     object{"target": object{"service": "mail"}, "addresses": []string{"192.0.2.78"}, "ports": []object{{"port": 25}}},
	}
	try := func(namespace string) error {
		path := "/apis/pinhole.dev/v1alpha1/namespaces/" + namespace + "/pinholes?dryRun=All"
		return c.cluster.Do(context.Background(), 0, http.MethodPost, path, asking, nil)
	}
	if err := try("kube-system"); err != nil {
		t.Errorf("in a namespace that the webhook is not asked about: %v", err)
	}
	const said = "metadata.annotations[pinhole.dev/expose]: 25: is not read here: a Pinhole names its ports in spec.ports"
	if err := try(c.namespace); err == nil || !strings.Contains(err.Error(), said) {
		t.Errorf("expected %q, got %v", said, err)
	}
	var list struct{ Items []any }
	c.must(http.MethodGet, "/apis/pinhole.dev/v1alpha1/namespaces/default/pinholes", nil, &list)
	if len(list.Items) != 0 {
		t.Errorf("the self-test has stored %v", list.Items)
	}
}
