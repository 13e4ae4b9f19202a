package capture

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// Settings say where Remora is, and how it knows us.
type Settings struct {
	// URL of the trigger: https://HOST:PORT/v1/triggers/talon. http only to this machine itself.
	URL string
	// CAFile has the certificates that sign Remora's (PEM); empty for the system's.
	CAFile string
	// CertFile and KeyFile are our own certificate (PEM); both or neither.
	CertFile, KeyFile string
	// TokenFile has the secret that Remora calls --alerts-secret; empty for none.
	TokenFile string
}

// FromEnvironment reads REMORA_URL, REMORA_CA_FILE, REMORA_CERT_FILE, REMORA_KEY_FILE and
// REMORA_TOKEN_FILE.
func FromEnvironment() Settings {
	return Settings{
		URL:       os.Getenv("REMORA_URL"),
		CAFile:    os.Getenv("REMORA_CA_FILE"),
		CertFile:  os.Getenv("REMORA_CERT_FILE"),
		KeyFile:   os.Getenv("REMORA_KEY_FILE"),
		TokenFile: os.Getenv("REMORA_TOKEN_FILE"),
	}
}

// check says what is wrong, without a call: Talon is to start while Remora is away.
func (s Settings) check() error {
	if s.URL == "" {
		return errors.New("REMORA_URL is not set; it is like https://remora-controller.remora:2803/v1/triggers/talon")
	}
	target, err := url.Parse(s.URL)
	if err != nil || target.Host == "" {
		return fmt.Errorf("REMORA_URL %.200q is not a URL", s.URL)
	}
	switch {
	case target.User != nil:
		return errors.New("REMORA_URL has a password in it; put the secret into a file (REMORA_TOKEN_FILE)")
	case target.Scheme == "https":
	case target.Scheme == "http" && isLoopback(target.Hostname()):
	default:
		return fmt.Errorf("REMORA_URL %.200q must be https: alerts would go through the network in the clear", s.URL)
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return errors.New("REMORA_CERT_FILE and REMORA_KEY_FILE belong together")
	}
	if s.TokenFile != "" {
		if _, err := s.token(); err != nil {
			return err
		}
	}
	if target.Scheme == "https" {
		_, err = s.tls(target.Hostname())
	}
	return err
}

// tokenMax is the longest secret that Remora takes, in bytes.
const tokenMax = 1024

// token is read anew for each call, so that a changed one is used at once.
func (s Settings) token() (string, error) {
	text, err := readFile(s.TokenFile, tokenMax+2)
	if err != nil {
		return "", fmt.Errorf("REMORA_TOKEN_FILE: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(token) > tokenMax {
		return "", fmt.Errorf("REMORA_TOKEN_FILE: %s has no secret of 1 to %d characters", s.TokenFile, tokenMax)
	}
	return token, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
