package lab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// AuditEvent is what the API server's audit log says about one request, as far as these tests look.
type AuditEvent struct {
	Verb       string
	RequestURI string
	User       struct {
		Username string
	}
	ObjectRef struct {
		Resource, Subresource, Namespace, Name, APIGroup string
	}
	ResponseStatus struct {
		Code int
	}
	Annotations map[string]string
}

// Audit reads the cluster's audit log.
func (c *Cluster) Audit() ([]AuditEvent, error) {
	text, err := os.ReadFile(filepath.Join(c.directory, "audit.log"))
	if err != nil {
		return nil, err
	}
	var events []AuditEvent
	for _, line := range strings.Split(string(text), "\n") {
		var event AuditEvent
		// The last line may still be being written.
		if json.Unmarshal([]byte(line), &event) == nil {
			events = append(events, event)
		}
	}
	return events, nil
}
