package chart

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestTheValuesOfTheCertificateExamplesFitTheChart(t *testing.T) {
	for file, shown := range map[string]string{
		"files.values.yaml":  "secretName: pinhole-webhook-tls",
		"issuer.values.yaml": "name: platform-ca",
	} {
		text, err := helm("template", "pinhole", chart, "--namespace=pinhole-system", "--values="+filepath.Join("../../certs", file))
		if err != nil {
			t.Errorf("certs/%s: %v", file, err)
		} else if !strings.Contains(text, shown) {
			t.Errorf("with certs/%s the chart makes nothing with %q", file, shown)
		}
	}
	found, err := filepath.Glob("../../certs/*.values.yaml")
	if err != nil || len(found) != 2 {
		t.Errorf("certs/ has %v, of which not all are tested (%v)", found, err)
	}
}
