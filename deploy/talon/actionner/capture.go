// Package capture asks Remora for a packet capture, for Falco Talon's actionner remora:capture.
//
// Talon has one consumer, so a call ends within a second, whatever Remora does: the answer has the
// capture's id, and the capture goes on by itself. A call without an answer is made once more with
// the same key, so that it is one capture. No proxy is used and no redirect followed: an alert goes
// to Remora or nowhere.
package capture

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// deadline of a call, its repetition included.
	deadline = time.Second
	// answerMax is the largest answer that is read, in bytes.
	answerMax = 64 << 10
	// bodyMax is the largest call, in bytes: Remora takes no larger one.
	bodyMax = 80<<10 - 16
	// reasonMax is the longest reason that is told, in bytes.
	reasonMax = 512
	// attempts of one call.
	attempts = 2
)

// Event is what is read of Talon's event beside sending it whole.
type Event struct {
	TraceID, Rule, Output string
	Time                  time.Time
	// Whole marshals to the event's JSON.
	Whole any
}

// Action is Talon's.
type Action struct {
	Name       string         `json:"name"`
	Actionner  string         `json:"actionner"`
	Parameters map[string]any `json:"parameters"`
}

// Client makes calls; for any number of goroutines.
type Client struct {
	settings Settings
	http     *http.Client
	deadline time.Duration
}

// New checks the settings, and calls nobody.
func New(settings Settings) (*Client, error) {
	if err := settings.check(); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:                  nil,
		DialContext:            (&net.Dialer{}).DialContext,
		DialTLSContext:         settings.dialTLS,
		MaxConnsPerHost:        4,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        90 * time.Second, // Remora keeps it for 120 s
		MaxResponseHeaderBytes: 16 << 10,
		DisableCompression:     true,
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{settings, &http.Client{Transport: transport, CheckRedirect: stay}, deadline}, nil
}

// Capture asks for a capture and returns its id.
func (c *Client) Capture(event Event, action Action) (string, error) {
	body, err := json.Marshal(map[string]any{"event": event.Whole, "action": action})
	if err != nil {
		return "", fmt.Errorf("the event or a parameter is no JSON: %w", err)
	}
	if len(body) > bodyMax {
		return "", fmt.Errorf("event and action have %d bytes; Remora takes %d", len(body), bodyMax)
	}
	header, err := c.header(event, action)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.deadline)
	defer cancel()
	for attempt := 1; ; attempt++ {
		id, err := c.call(ctx, header, body)
		var refused *Refused
		if err == nil || errors.As(err, &refused) || attempt == attempts || ctx.Err() != nil {
			return id, err
		}
	}
}

func (c *Client) header(event Event, action Action) (http.Header, error) {
	header := http.Header{
		"Content-Type":    {"application/json"},
		"User-Agent":      {"falco-talon-remora-capture"},
		"Idempotency-Key": {key(event, action)},
	}
	if trace := traceparent(event.TraceID); trace != "" {
		header.Set("Traceparent", trace)
	}
	if c.settings.TokenFile != "" {
		token, err := c.settings.token()
		if err != nil {
			return nil, err
		}
		header.Set("Authorization", "Bearer "+token)
	}
	return header, nil
}

// Refused is Remora's no: the same call again would have the same answer.
type Refused struct {
	Status int
	Reason string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("Remora refused it (%d): %s", r.Status, r.Reason)
}

func (c *Client) call(ctx context.Context, header http.Header, body []byte) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.settings.URL, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header = header
	answer, err := c.http.Do(request)
	if err != nil {
		return "", fmt.Errorf("no answer from Remora: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, answerMax))
	if err != nil {
		return "", fmt.Errorf("no whole answer from Remora: %w", err)
	}
	var told struct {
		ID     string `json:"capture_id"`
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(text, &told); err != nil {
		told.Reason = "the answer is not Remora's: " + string(text)
	}
	if answer.StatusCode/100 == 2 && told.ID != "" {
		return oneLine(told.ID), nil
	}
	return "", &Refused{answer.StatusCode, oneLine(told.Reason)}
}

// key is the same for each attempt for one action of one event, and another for any other.
func key(event Event, action Action) string {
	hash := sha256.New()
	for _, part := range []string{
		event.TraceID, event.Rule, event.Output, event.Time.UTC().Format(time.RFC3339Nano), action.Name,
	} {
		fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(hash.Sum(nil)[:16])
}

// traceparent continues the event's trace (W3C Trace Context); empty if it has none.
func traceparent(trace string) string {
	bytes, err := hex.DecodeString(trace)
	if err != nil || len(bytes) != 16 || strings.Trim(trace, "0") == "" {
		return ""
	}
	span := make([]byte, 8)
	if _, err := rand.Read(span); err != nil {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-01", strings.ToLower(trace), hex.EncodeToString(span))
}

// oneLine makes text from outside fit for a log.
func oneLine(text string) string {
	if len(text) > reasonMax {
		text = text[:reasonMax] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
