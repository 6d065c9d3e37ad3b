package lab

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"
)

// StartCertManager installs cert-manager's resources and starts its controllers and its injector.
func (c *Cluster) StartCertManager() error {
	directory, err := directoryFrom("PINHOLE_CERT_MANAGER", "cert-manager", "e2e/cert-manager/build prints it")
	if err != nil {
		return err
	}
	resources := filepath.Join(directory, "crds.yaml")
	if err := c.admin("", "apply", "--server-side", "-f", resources); err != nil {
		return err
	}
	if err := c.admin("", "wait", "--for=condition=Established", "--timeout=30s", "-f", resources); err != nil {
		return err
	}
	c.Issuer, err = startProcess("cert-manager", c.directory, nil, filepath.Join(directory, "cert-manager"), "--kubeconfig="+c.kubeconfig(0), "--v=2")
	return err
}

const certificatesPath = "/apis/cert-manager.io/v1/namespaces/" + WebhookNamespace + "/certificates/"

// certificate is a Certificate, as far as these tests look.
type certificate struct {
	Status struct {
		Revision   int              `json:"revision"`
		Conditions []map[string]any `json:"conditions"`
	} `json:"status"`
}

// RenewCertificate has cert-manager issue a Certificate anew, as `cmctl renew` asks for it, and waits until that is done.
func (c *Cluster) RenewCertificate(name string) error {
	before, err := c.certificate(name)
	if err != nil {
		return err
	}
	asked := append(before.Status.Conditions, map[string]any{
		"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "asked for by a test",
		"lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
	})
	patch := map[string]any{"status": map[string]any{"conditions": asked}}
	if err := c.Do(context.Background(), 0, http.MethodPatch, certificatesPath+name+"/status", patch, nil); err != nil {
		return err
	}
	return Poll(30*time.Second, func() error {
		now, err := c.certificate(name)
		if err == nil && now.Status.Revision <= before.Status.Revision {
			err = fmt.Errorf("Certificate %s is still in revision %d\n%s", name, now.Status.Revision, c.Issuer.LogTail())
		}
		return err
	})
}

func (c *Cluster) certificate(name string) (certificate, error) {
	var found certificate
	err := c.Do(context.Background(), 0, http.MethodGet, certificatesPath+name, nil, &found)
	return found, err
}
