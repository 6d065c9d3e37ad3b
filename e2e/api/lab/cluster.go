package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	adminToken = "admin-token"
	// WebhookNamespace and webhookService name what each file of webhook-config/ installs.
	WebhookNamespace = "pinhole-system"
	webhookService   = "pinhole-webhook"
	// WebhookHost is the name by which API servers call the webhook.
	WebhookHost = webhookService + "." + WebhookNamespace + ".svc"
)

// Options say what a cluster consists of.
type Options struct {
	// Name tells clusters apart in error messages.
	Name string
	// Network is the third number of the cluster's addresses, 10.98.Network.0/24.
	Network int
	// APIServers is how many kube-apiservers share the cluster's etcd.
	APIServers int
	// Controllers says whether a kube-controller-manager runs. Nodes, kubelet and scheduler never do.
	Controllers bool
	// Manifests install the webhook, in place of those that are shipped. Whoever trusts whom is their affair then.
	Manifests string
	// CertManager says whether cert-manager runs before the webhook is installed.
	CertManager bool
	// BeforeWebhook are manifests applied before the webhook is known to the cluster.
	BeforeWebhook string
}

// Cluster is a Kubernetes control plane with Pinhole's webhook-config/files.yaml applied as it is shipped.
type Cluster struct {
	Options
	Authority *Authority
	// Issuer is cert-manager, where it runs.
	Issuer *Process

	directory   string
	binaries    string
	pinhole     string
	client      *http.Client
	servers     []*Process
	webhookArgs []string

	mutex    sync.Mutex
	replicas map[*Replica]struct{}
	started  int
}

// StartCluster brings up a control plane and installs webhook-config/files.yaml; no replica of the webhook runs yet.
func StartCluster(options Options) (*Cluster, error) {
	cluster, err := startCluster(options)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", options.Name, err)
	}
	return cluster, nil
}

func startCluster(options Options) (*Cluster, error) {
	binaries, err := directoryFrom("PINHOLE_CONTROL_PLANE", "kube-apiserver", "e2e/build-control-plane prints it")
	if err != nil {
		return nil, err
	}
	pinhole, err := filepath.Abs(os.Getenv("PINHOLE_BIN"))
	if err != nil {
		return nil, err
	}
	if information, err := os.Stat(pinhole); err != nil || information.IsDir() {
		return nil, fmt.Errorf("PINHOLE_BIN=%q is not the pinhole binary: build it with `cargo build` and name it there", os.Getenv("PINHOLE_BIN"))
	}
	directory, err := os.MkdirTemp("", options.Name+"-")
	if err != nil {
		return nil, err
	}
	authority, err := NewAuthority("pinhole e2e " + options.Name)
	if err != nil {
		return nil, err
	}
	cluster := &Cluster{
		Options:   options,
		Authority: authority,
		directory: directory,
		binaries:  binaries,
		pinhole:   pinhole,
		client: &http.Client{
			Transport: &http.Transport{
				TLSClientConfig:     &tls.Config{RootCAs: authority.pool()},
				ForceAttemptHTTP2:   true,
				MaxIdleConnsPerHost: 16,
			},
			Timeout: 60 * time.Second,
		},
		replicas: map[*Replica]struct{}{},
	}
	if err := cluster.installPlugin(); err != nil {
		return nil, err
	}
	if err := cluster.startControlPlane(); err != nil {
		return nil, err
	}
	if options.BeforeWebhook != "" {
		if err := cluster.admin(options.BeforeWebhook, "apply", "-f", "-"); err != nil {
			return nil, err
		}
	}
	if options.CertManager {
		if err := cluster.StartCertManager(); err != nil {
			return nil, err
		}
	}
	if err := cluster.installWebhook(); err != nil {
		return nil, err
	}
	go cluster.keepEndpoints()
	clusters.Store(cluster, true)
	return cluster, nil
}

var clusters sync.Map

// Clusters are all clusters that were started.
func Clusters() []*Cluster {
	var all []*Cluster
	clusters.Range(func(cluster, _ any) bool {
		all = append(all, cluster.(*Cluster))
		return true
	})
	slices.SortFunc(all, func(a, b *Cluster) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func directoryFrom(variable, member, hint string) (string, error) {
	directory := os.Getenv(variable)
	if _, err := os.Stat(filepath.Join(directory, member)); err != nil {
		return "", fmt.Errorf("%s=%q does not hold %s (%s)", variable, directory, member, hint)
	}
	return directory, nil
}

// address is one of the addresses of this cluster; whoever starts a server makes it local first.
func (c *Cluster) address(host int) string {
	return fmt.Sprintf("10.98.%d.%d", c.Network, host)
}

func (c *Cluster) serverAddress(server int) string { return c.address(11 + server) }

func (c *Cluster) startControlPlane() error {
	etcd := c.address(1)
	addresses := []string{etcd}
	for server := range c.APIServers {
		addresses = append(addresses, c.serverAddress(server))
	}
	for _, address := range addresses {
		if err := addAddress(address); err != nil {
			return err
		}
	}
	if err := c.writeFiles(); err != nil {
		return err
	}

	clientURL, peerURL := "http://"+etcd+":2379", "http://"+etcd+":2380"
	process, err := startProcess("etcd", c.directory, nil, filepath.Join(c.binaries, "etcd"),
		"--data-dir="+filepath.Join(c.directory, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+clientURL, "--advertise-client-urls="+clientURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)
	if err != nil {
		return err
	}
	if err := c.waitFor(process, clientURL+"/health"); err != nil {
		return err
	}
	for server := range c.APIServers {
		if err := c.startAPIServer(server, clientURL); err != nil {
			return err
		}
	}
	for server, process := range c.servers {
		if err := c.waitFor(process, c.url(server)+"/readyz"); err != nil {
			return err
		}
	}
	if !c.Controllers {
		return nil
	}
	_, err = startProcess("kube-controller-manager", c.directory, nil, filepath.Join(c.binaries, "kube-controller-manager"),
		"--kubeconfig="+c.kubeconfig(0), "--leader-elect=false", "--secure-port=0", "--use-service-account-credentials=false",
		"--controllers=deployment-controller,replicaset-controller,statefulset-controller,daemonset-controller,job-controller,"+
			"cronjob-controller,garbage-collector-controller,namespace-controller,serviceaccount-controller,disruption-controller")
	return err
}

func (c *Cluster) startAPIServer(server int, etcd string) error {
	address := c.serverAddress(server)
	certificates := filepath.Join(c.directory, fmt.Sprintf("apiserver-%d", server))
	if err := c.Authority.issueInto(certificates, address, "127.0.0.1", "kubernetes.default.svc"); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(c.directory, name) }
	process, err := startProcess(fmt.Sprintf("kube-apiserver-%d", server), c.directory, nil, filepath.Join(c.binaries, "kube-apiserver"),
		"--etcd-servers="+etcd,
		"--bind-address="+address, "--advertise-address="+address, "--secure-port=6443", "--endpoint-reconciler-type=none",
		"--tls-cert-file="+filepath.Join(certificates, "tls.crt"), "--tls-private-key-file="+filepath.Join(certificates, "tls.key"),
		"--cert-dir="+certificates,
		"--token-auth-file="+in("tokens.csv"), "--authorization-mode=RBAC",
		"--service-account-key-file="+in("service-accounts.key"), "--service-account-signing-key-file="+in("service-accounts.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		// Pods need no token here, and the controller that makes the default ServiceAccount would have to win a race.
		// Nodes have no kubelet that would report them ready, and are to be good enough for a DaemonSet.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
		"--service-cluster-ip-range=10.97.0.0/24",
		// Webhooks are reached at the addresses in EndpointSlices: there is no kube-proxy behind a Service's address.
		"--enable-aggregator-routing=true",
		"--audit-policy-file="+in("audit-policy.yaml"), "--audit-log-path="+in("audit.log"))
	c.servers = append(c.servers, process)
	return err
}

func (c *Cluster) writeFiles() error {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	files := map[string]string{
		"service-accounts.key": string(key),
		"tokens.csv":           adminToken + ",admin,admin,system:masters\n",
		"audit-policy.yaml": "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n" +
			"omitManagedFields: true\nrules:\n- level: Metadata\n",
	}
	for server := range c.APIServers {
		files[filepath.Base(c.kubeconfig(server))] = c.kubeconfigText(c.url(server), adminToken)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(c.directory, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// APIServer is one of the cluster's, counted from 0.
func (c *Cluster) APIServer(server int) *Process { return c.servers[server] }

func (c *Cluster) url(server int) string { return "https://" + c.serverAddress(server) + ":6443" }

func (c *Cluster) kubeconfig(server int) string {
	return filepath.Join(c.directory, fmt.Sprintf("admin-%d.kubeconfig", server))
}

func (c *Cluster) kubeconfigText(url, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: lab, user: {token: %q}}]
contexts: [{name: lab, context: {cluster: lab, user: lab}}]
current-context: lab
`, url, base64.StdEncoding.EncodeToString(c.Authority.PEM), token)
}

// waitFor waits until a server answers 200, and gives up at once when its process ends.
func (c *Cluster) waitFor(process *Process, url string) error {
	var gone error
	err := Poll(90*time.Second, func() error {
		if process.Exited() {
			gone = fmt.Errorf("%s ended", process.Name)
			return nil
		}
		request, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+adminToken)
		response, err := c.client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s: %s", url, response.Status, body)
		}
		return nil
	})
	if err == nil {
		err = gone
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, process.LogTail())
	}
	return nil
}

// installWebhook applies webhook-config/files.yaml as it is shipped, then injects the CA as its comments tell users to.
func (c *Cluster) installWebhook() error {
	if c.Manifests != "" {
		if err := c.admin("", "apply", "-f", c.Manifests); err != nil {
			return err
		}
	} else if err := c.installShipped(); err != nil {
		return err
	}
	var err error
	c.webhookArgs, err = c.shippedArguments("deployments/pinhole-webhook")
	return err
}

// shippedArguments are the arguments of the one container in a shipped workload.
func (c *Cluster) shippedArguments(workload string) ([]string, error) {
	var stored struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Args []string `json:"args"`
					} `json:"containers"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	path := "/apis/apps/v1/namespaces/" + WebhookNamespace + "/" + workload
	if err := c.Do(context.Background(), 0, http.MethodGet, path, nil, &stored); err != nil {
		return nil, err
	}
	return stored.Spec.Template.Spec.Containers[0].Args, nil
}

// serviceAccountKubeconfig writes a kubeconfig with the rights of a ServiceAccount in the webhook's namespace.
func (c *Cluster) serviceAccountKubeconfig(account, url, path string) error {
	token, err := c.Token(WebhookNamespace, account)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(c.kubeconfigText(url, token)), 0o600)
}

// Token is a token with the rights of a ServiceAccount.
func (c *Cluster) Token(namespace, account string) (string, error) {
	token, err := c.Kubectl("", "create", "token", account, "--namespace="+namespace, "--duration=2h")
	if err == nil && !token.Succeeded {
		err = errors.New(token.Stderr)
	}
	return strings.TrimSpace(token.Stdout), err
}

// KubeconfigWith is a kubeconfig that shows this token to the first API server.
func (c *Cluster) KubeconfigWith(token string) string { return c.kubeconfigText(c.url(0), token) }

// installShipped applies the shipped manifests of certificates in files, and trusts the cluster's own authority.
func (c *Cluster) installShipped() error {
	if err := c.admin("", "apply", "-f", shippedManifests); err != nil {
		return err
	}
	return c.Trust(c.Authority.PEM)
}

// Trust writes the caBundle of all three webhooks, as an operator would who keeps certificates in files.
func (c *Cluster) Trust(authorities []byte) error {
	bundle := base64.StdEncoding.EncodeToString(authorities)
	for _, kind := range ConfigurationKinds {
		present, err := c.bundlesOf(kind)
		if err != nil {
			return err
		}
		var operations []string
		for webhook := range present {
			operations = append(operations,
				fmt.Sprintf(`{"op":"add","path":"/webhooks/%d/clientConfig/caBundle","value":%q}`, webhook, bundle))
		}
		if err := c.admin("", "patch", kind, "pinhole", "--type=json", "-p", "["+strings.Join(operations, ",")+"]"); err != nil {
			return err
		}
	}
	return nil
}

// StatusError is an answer of the API server other than 2xx.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Code, e.Message) }

// Do sends one request to an API server, as administrator. A PATCH is a merge patch. The answer goes to out unless that is nil.
func (c *Cluster) Do(ctx context.Context, server int, method, path string, body, out any) error {
	return c.DoWith(ctx, server, nil, method, path, body, out)
}

// DoWith is Do with these headers, which can make it somebody else's request or another kind of patch.
func (c *Cluster) DoWith(ctx context.Context, server int, headers map[string]string, method, path string, body, out any) error {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.url(server)+path, payload)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+adminToken)
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := c.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode < 200 || 299 < response.StatusCode {
		var status struct{ Message string }
		if json.Unmarshal(text, &status) != nil || status.Message == "" {
			status.Message = string(text)
		}
		return &StatusError{response.StatusCode, status.Message}
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *string:
		*out = string(text)
		return nil
	default:
		return json.Unmarshal(text, out)
	}
}

// AdminKubeconfig is a kubeconfig of the administrator, for programs that bring their own client.
func (c *Cluster) AdminKubeconfig() string { return c.kubeconfigText(c.url(0), adminToken) }
