package capture

import (
	"github.com/falcosecurity/falco-talon/internal/events"
	"github.com/falcosecurity/falco-talon/internal/models"
	"github.com/falcosecurity/falco-talon/internal/rules"
	"github.com/falcosecurity/falco-talon/utils"
)

const name = "remora:capture"

// Actionner is remora:capture, as Talon has its actionners.
type Actionner struct{ client *Client }

func Register() *Actionner { return new(Actionner) }

func (a *Actionner) Init() (err error) {
	a.client, err = New(FromEnvironment())
	return err
}

func (a *Actionner) Information() models.Information {
	return models.Information{
		Name: "capture", Category: "remora", FullName: name, Source: "any", Continue: true,
		Description: "Capture the packets of the alert's pod with Remora",
		Permissions: "None in Kubernetes; REMORA_URL, and a certificate or REMORA_TOKEN_FILE",
		Example:     "- action: Capture\n  actionner: remora:capture\n  parameters:\n    look_back: 15s\n    duration: 30s\n",
	}
}

// Parameters are checked by Remora, which knows them all.
func (a *Actionner) Parameters() models.Parameters             { return struct{}{} }
func (a *Actionner) CheckParameters(*rules.Action) error       { return nil }
func (a *Actionner) Checks(*events.Event, *rules.Action) error { return nil }

func (a *Actionner) Run(event *events.Event, action *rules.Action) (utils.LogLine, *models.Data, error) {
	id, err := a.client.Capture(
		Event{TraceID: event.TraceID, Rule: event.Rule, Output: event.Output, Time: event.Time, Whole: event},
		Action{Name: action.GetName(), Actionner: name, Parameters: action.GetParameters()},
	)
	if err != nil {
		return utils.LogLine{Error: err.Error(), Status: utils.FailureStr}, nil, err
	}
	return utils.LogLine{Objects: map[string]string{"capture": id}, Output: "the capture '" + id + "' has begun", Status: utils.SuccessStr}, nil, nil
}
