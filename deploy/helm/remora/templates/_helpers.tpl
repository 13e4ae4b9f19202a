{{/* Start of the names of all objects: a cluster has one Remora, and its parts look for each other
     by these names. */}}
{{- define "remora.name" -}}
remora
{{- end }}

{{/* Labels that select pods: they never change. Give (list . "agent"). */}}
{{- define "remora.selector" -}}
app.kubernetes.io/name: remora-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- define "remora.labels" -}}
{{ include "remora.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/part-of: remora
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "remora.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Secrets of the certificates. */}}
{{- define "remora.agentSecret" -}}
{{- if eq .Values.tls.mode "existingSecret" }}{{ .Values.tls.agentSecret }}
{{- else }}{{ include "remora.name" . }}-agent-tls{{ end }}
{{- end }}

{{- define "remora.controllerSecret" -}}
{{- if eq .Values.tls.mode "existingSecret" }}{{ .Values.tls.controllerSecret }}
{{- else }}{{ include "remora.name" . }}-controller-tls{{ end }}
{{- end }}

{{/* DNS names of the controllers' certificate. */}}
{{- define "remora.controllerNames" -}}
{{- $service := printf "%s-controller.%s.svc" (include "remora.name" .) .Release.Namespace -}}
{{ list "remora-controller" $service (printf "%s.cluster.local" $service) | toJson }}
{{- end }}

{{/* The secret that senders of alerts show. */}}
{{- define "remora.alertsSecret" -}}
{{ .Values.alerts.existingSecret | default (printf "%s-alerts" (include "remora.name" .)) }}
{{- end }}

{{/* What every container is forbidden. */}}
{{- define "remora.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  type: RuntimeDefault
{{- end }}
