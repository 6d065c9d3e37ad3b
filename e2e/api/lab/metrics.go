package lab

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Calls is what one API server counted about its calls to the webhooks of pinhole.dev.
type Calls struct {
	// Total is how many calls it made, whatever came of them.
	Total float64
	// Failed is how many of them got no valid answer, whether or not the request was let through for that.
	Failed float64
}

var sample = regexp.MustCompile(`^(\w+)\{(.*)\} (\S+)$`)

// WebhookCalls reads these counts from an API server's metrics.
func (c *Cluster) WebhookCalls(server int) (Calls, error) {
	var text string
	if err := c.Do(context.Background(), server, http.MethodGet, "/metrics", nil, &text); err != nil {
		return Calls{}, err
	}
	var calls Calls
	for _, line := range strings.Split(text, "\n") {
		match := sample.FindStringSubmatch(line)
		if match == nil || !strings.Contains(match[2], `.pinhole.dev"`) {
			continue
		}
		value, err := strconv.ParseFloat(match[3], 64)
		if err != nil {
			return Calls{}, fmt.Errorf("metric %s: %w", line, err)
		}
		switch {
		case match[1] == "apiserver_admission_webhook_request_total":
			calls.Total += value
		case match[1] == "apiserver_admission_webhook_fail_open_count":
			calls.Failed += value
		case match[1] == "apiserver_admission_webhook_rejection_count" && !strings.Contains(match[2], `error_type="no_error"`):
			calls.Failed += value
		}
	}
	return calls, nil
}
