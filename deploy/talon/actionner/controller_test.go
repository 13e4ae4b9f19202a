package capture

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The real remora-controller, of which REMORA_CONTROLLER is the program. It has no agent: that it
// says so shows that the call was heard, believed and understood.
const awayCode = 503

// ca signs certificates.
type ca struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, certificate := sign(t, nil, "ca", true)
	return &ca{key, certificate}
}

func sign(t *testing.T, by *ca, name string, isCA bool) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  isCA,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer := template, key
	if isCA {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, nil
	}
	if by != nil {
		parent, signer = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

func write(t *testing.T, path, kind string, bytes []byte) string {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// files writes a certificate for name and its key.
func (c *ca) files(t *testing.T, path, name string) (string, string) {
	t.Helper()
	key, certificate := sign(t, c, name, false)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, path+".crt", "CERTIFICATE", certificate.Raw), write(t, path+".key", "PRIVATE KEY", der)
}

const rules = `- rule: any
  actions:
    - action: capture
      actionner: remora:capture
`

var listening = regexp.MustCompile(`taking alerts.*127\.0\.0\.1:(\d+)`)

// controller runs with a secret and mutual TLS; the settings let a client in.
func controller(t *testing.T, ca *ca) Settings {
	t.Helper()
	program := os.Getenv("REMORA_CONTROLLER")
	if program == "" {
		t.Skip("REMORA_CONTROLLER is not set; `cargo xtask test` does it")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"rules.yaml": rules, "secret": "a-secret-of-the-senders\n"} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := ca.files(t, at("server"), "localhost")
	trusted := write(t, at("ca.crt"), "CERTIFICATE", ca.certificate.Raw)
	command := exec.Command(program, "run", "--listen", "127.0.0.1:0",
		"--agent", "unix:"+at("nobody.sock"), "--rules", at("rules.yaml"),
		"--alerts-secret", at("secret"), "--alerts-tls-cert", cert, "--alerts-tls-key", key,
		"--alerts-tls-ca", trusted, "--alerts-tls-client-san", "falco-talon")
	log, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if found := listening.FindStringSubmatch(lines.Text()); found != nil {
			go func() {
				for lines.Scan() {
				}
			}()
			ownCert, ownKey := ca.files(t, at("own"), "falco-talon")
			return Settings{
				URL:    "https://localhost:" + found[1] + "/v1/triggers/talon",
				CAFile: trusted, CertFile: ownCert, KeyFile: ownKey, TokenFile: at("secret"),
			}
		}
	}
	t.Fatal("the controller does not listen")
	return Settings{}
}

func refused(t *testing.T, settings Settings, action Action) *Refused {
	t.Helper()
	var refused *Refused
	if _, err := patient(t, settings).Capture(event, action); !errors.As(err, &refused) {
		t.Fatal(err)
	}
	return refused
}

func TestByCertificateAndTokenTheControllerHears(t *testing.T) {
	settings := controller(t, newCA(t))
	away := refused(t, settings, action)
	if away.Status != awayCode || !strings.Contains(away.Reason, "agent") {
		t.Error(away)
	}
	wrong := action
	wrong.Parameters = map[string]any{"fliter": "tcp"}
	if told := refused(t, settings, wrong); told.Status != 422 || !strings.Contains(told.Reason, "did you mean `filter`") {
		t.Error(told)
	}
	settings.TokenFile = ""
	if told := refused(t, settings, action); told.Status != 401 {
		t.Error(told)
	}
}

func TestWithoutOurCertificateNobodyHears(t *testing.T) {
	settings := controller(t, newCA(t))
	strange := newCA(t)
	dir := t.TempDir()
	cert, key := strange.files(t, filepath.Join(dir, "own"), "falco-talon")
	stranger, anonymous, mistrustful := settings, settings, settings
	stranger.CertFile, stranger.KeyFile = cert, key
	anonymous.CertFile, anonymous.KeyFile = "", ""
	mistrustful.CAFile = write(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", strange.certificate.Raw)
	for _, settings := range []Settings{stranger, anonymous, mistrustful} {
		id, err := patient(t, settings).Capture(event, action)
		var heard *Refused
		if err == nil || errors.As(err, &heard) {
			t.Errorf("%q, %v", id, err)
		}
	}
}

func TestRenewedFilesAreUsedWithoutAnewStart(t *testing.T) {
	ca := newCA(t)
	settings := controller(t, ca)
	expired := newCA(t)
	path := strings.TrimSuffix(settings.CertFile, ".crt")
	expired.files(t, path, "falco-talon")
	if err := os.WriteFile(settings.TokenFile+"-2", []byte("another-secret-of-somebody"), 0o600); err != nil {
		t.Fatal(err)
	}
	token := settings.TokenFile
	settings.TokenFile += "-2"
	client := patient(t, settings)
	var heard *Refused
	if _, err := client.Capture(event, action); err == nil || errors.As(err, &heard) {
		t.Fatal(err)
	}
	ca.files(t, path, "falco-talon")
	if _, err := client.Capture(event, action); !errors.As(err, &heard) || heard.Status != 401 {
		t.Fatal(err)
	}
	right, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(settings.TokenFile, right, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Capture(event, action); !errors.As(err, &heard) || heard.Status != awayCode {
		t.Fatal(err)
	}
}
