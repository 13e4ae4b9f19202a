package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var (
	event = Event{
		TraceID: "b992f8e095f1bdc9d865f1747ff2d7bb",
		Rule:    "Outbound Connection to C2 Servers",
		Output:  "C2",
		Time:    time.Date(2026, 11, 24, 3, 0, 5, 478445995, time.UTC),
		Whole: map[string]any{
			"rule": "Outbound Connection to C2 Servers", "time": "2026-11-24T03:00:05.478445995Z",
			"output_fields": map[string]any{"container.id": "ee97d9c4186f", "fd.sip": "198.51.100.23", "fd.sport": 4444},
			"context":       map[string]any{"falco-talon.rule": "C2 traffic"},
		},
	}
	action = Action{Name: "Capture", Actionner: "remora:capture", Parameters: map[string]any{"duration": "5s"}}
)

// patient has a client that waits as long as a busy machine takes.
func patient(t *testing.T, settings Settings) *Client {
	t.Helper()
	client, err := New(settings)
	if err != nil {
		t.Fatal(err)
	}
	client.deadline = time.Minute
	return client
}

// remora answers as told.
func remora(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return patient(t, Settings{URL: server.URL + "/v1/triggers/talon"})
}

func drop(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.Close()
	}
}

func TestACallHasEventActionKeyAndTrace(t *testing.T) {
	client := remora(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Event  map[string]any
			Action Action
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		if body.Event["rule"] != event.Rule || body.Action.Parameters["duration"] != "5s" {
			t.Errorf("%v", body)
		}
		if key := r.Header.Get("Idempotency-Key"); len(key) != 32 {
			t.Errorf("key %q", key)
		}
		trace := r.Header.Get("Traceparent")
		if !strings.HasPrefix(trace, "00-"+event.TraceID+"-") || len(trace) != 55 {
			t.Errorf("trace %q", trace)
		}
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"decision":"accepted","capture_id":"01JD"}`)
	})
	id, err := client.Capture(event, action)
	if id != "01JD" || err != nil {
		t.Fatalf("%q, %v", id, err)
	}
}

func TestACallWithoutAnAnswerIsMadeOnceMoreWithTheSameKey(t *testing.T) {
	var calls atomic.Int32
	keys := make(chan string, 8)
	client := remora(t, func(w http.ResponseWriter, r *http.Request) {
		keys <- r.Header.Get("Idempotency-Key")
		if calls.Add(1) == 1 {
			drop(w)
			return
		}
		fmt.Fprint(w, `{"capture_id":"01JD"}`)
	})
	if id, err := client.Capture(event, action); id != "01JD" || err != nil {
		t.Fatalf("%q, %v", id, err)
	}
	if first, second := <-keys, <-keys; first != second {
		t.Fatalf("%s, %s", first, second)
	}
}

func TestARefusalIsToldOnceAndOnOneLine(t *testing.T) {
	var calls atomic.Int32
	client := remora(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusUnprocessableEntity)
		answer, _ := json.Marshal(map[string]string{"reason": "no\nsuch \x1b[2J pod" + strings.Repeat("x", 9999)})
		w.Write(answer)
	})
	_, err := client.Capture(event, action)
	var refused *Refused
	if !errors.As(err, &refused) || refused.Status != 422 || calls.Load() != 1 {
		t.Fatalf("%v after %d", err, calls.Load())
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 600 {
		t.Fatalf("%q", err)
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	client := remora(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	_, err := client.Capture(event, action)
	var refused *Refused
	if !errors.As(err, &refused) || refused.Status != 307 || elsewhere.Load() != 0 {
		t.Fatalf("%v, %d elsewhere", err, elsewhere.Load())
	}
}

func TestNoProxyIsUsed(t *testing.T) {
	client := remora(t, func(http.ResponseWriter, *http.Request) {})
	if client.http.Transport.(*http.Transport).Proxy != nil {
		t.Fatal("a proxy would be asked for")
	}
}

func TestACallEndsThoughRemoraHangs(t *testing.T) {
	release := make(chan struct{})
	client := remora(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-release
	})
	defer close(release)
	client.deadline = deadline
	_, err := client.Capture(event, action)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestWhatIsNoAnswerIsAnError(t *testing.T) {
	for _, text := range []string{"", "{}", "<html>", `{"capture_id":7}`, `{"capture_id":""}`} {
		client := remora(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
		if id, err := client.Capture(event, action); err == nil {
			t.Errorf("%q: %q", text, id)
		}
	}
}

func TestWhatCannotBeSentIsAnErrorWithoutACall(t *testing.T) {
	client := remora(t, func(http.ResponseWriter, *http.Request) { t.Error("a call") })
	large := event
	large.Whole = strings.Repeat("x", bodyMax)
	if _, err := client.Capture(large, action); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Error(err)
	}
	broken := action
	broken.Parameters = map[string]any{"x": make(chan int)}
	if _, err := client.Capture(event, broken); err == nil {
		t.Error("no error")
	}
}

func TestKeysTellCallsApart(t *testing.T) {
	keys := map[string]bool{key(event, action): true}
	again := event
	again.Whole = nil
	if !keys[key(again, action)] {
		t.Fatal("the same event has another key")
	}
	for _, change := range []func(*Event, *Action){
		func(e *Event, _ *Action) { e.TraceID = "" },
		func(e *Event, _ *Action) { e.Rule += "x" },
		func(e *Event, _ *Action) { e.Output += "x" },
		func(e *Event, _ *Action) { e.Rule, e.Output = e.Rule+"C", "2" },
		func(e *Event, _ *Action) { e.Time = e.Time.Add(1) },
		func(_ *Event, a *Action) { a.Name += "x" },
	} {
		e, a := event, action
		change(&e, &a)
		if keys[key(e, a)] {
			t.Errorf("%+v %+v", e, a)
		}
		keys[key(e, a)] = true
	}
}

func TestOnlyATraceIsContinued(t *testing.T) {
	for _, trace := range []string{"", "x", event.TraceID + "00", strings.Repeat("0", 32), "../" + event.TraceID[3:]} {
		if told := traceparent(trace); told != "" {
			t.Errorf("%q: %q", trace, told)
		}
	}
}

func TestSettingsSayWhatIsWrong(t *testing.T) {
	const url = "https://remora-controller.remora:2803/v1/triggers/talon"
	for wrong, settings := range map[string]Settings{
		"REMORA_URL is not set": {},
		"is not a URL":          {URL: "remora"},
		"must be https":         {URL: "http://remora-controller:2803/v1/triggers/talon"},
		"must be https ":        {URL: "ftp://127.0.0.1/"},
		"has a password":        {URL: "https://a:b@remora/"},
		"belong together":       {URL: url, CertFile: "c"},
		"REMORA_TOKEN_FILE":     {URL: url, TokenFile: "/nowhere"},
		"REMORA_CA_FILE":        {URL: url, CAFile: "/nowhere"},
		"REMORA_CERT_FILE, ":    {URL: url, CertFile: "/nowhere", KeyFile: "/nowhere"},
	} {
		_, err := New(settings)
		if err == nil || !strings.Contains(err.Error(), strings.TrimRight(wrong, " ,")) {
			t.Errorf("%s: %v", wrong, err)
		}
	}
	// Talon starts while Remora is away.
	for _, url := range []string{url, "http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost:1/"} {
		if _, err := New(Settings{URL: url}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}
