{{- define "pinhole.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pinhole.webhook" -}}{{ include "pinhole.fullname" . }}-webhook{{- end -}}
{{- define "pinhole.scraper" -}}{{ include "pinhole.fullname" . }}-scraper{{- end -}}
{{- define "pinhole.controller" -}}{{ include "pinhole.fullname" . }}-controller{{- end -}}
{{- define "pinhole.agent" -}}{{ include "pinhole.fullname" . }}-agent{{- end -}}

{{- /* The name that API servers call, and that the certificate must carry. */ -}}
{{- define "pinhole.serverName" -}}{{ include "pinhole.webhook" . }}.{{ .Release.Namespace }}.svc{{- end -}}

{{- define "pinhole.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "pinhole.labels" -}}
{{ include "pinhole.selectorLabels" . }}
{{- if not .root.Values.plainManifests }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Annotations of an object, in its metadata: the common ones and its own. */ -}}
{{- define "pinhole.annotations" -}}
{{- with merge (dict) (default dict .own) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "pinhole.image" -}}
{{- $image := merge (dict) .own .root.Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "pinhole.pullPolicy" -}}
{{- (merge (dict) .own .root.Values.image).pullPolicy -}}
{{- end -}}

{{- /* The annotation keys of others that the conditions always list, whether or not they are enabled, and the operator's. */ -}}
{{- define "pinhole.foreignKeys" -}}
{{- $always := list "bln.space/podnat" "k8s.aliyun.com/pod-dnat" "k8s.aliyun.com/pod-dnat-expose-port" "k8s.aliyun.com/pod-dnat-expose-protocol" "k8s.aliyun.com/pod-dnat-fixed" -}}
{{- range concat $always .Values.policy.annotationKeys | uniq }}
- {{ . }}
{{- end }}
{{- end -}}

{{- /* A list of strings in CEL, one line each: (dict "keys" list "indent" 10). */ -}}
{{- define "pinhole.celList" -}}
{{- $quoted := list -}}
{{- range .keys }}{{ $quoted = append $quoted (squote .) }}{{ end -}}
{{- join (printf ",\n%s" (repeat (int .indent) " ")) $quoted -}}
{{- end -}}

{{- /* Flags that webhook and agent get. */ -}}
{{- define "pinhole.policyArgs" -}}
{{- if not .Values.policy.discloseHolder }}
- --disclose-holder=false
{{- end }}
{{- include "pinhole.ruleArgs" . }}
{{- end -}}

{{- /* Flags that every part gets. */ -}}
{{- define "pinhole.ruleArgs" -}}
{{- with .Values.policy }}
{{- range .annotationKeys }}
- --annotation-key={{ . }}
{{- end }}
{{- range .compat }}
- --compat={{ . }}
{{- end }}
{{- range .statefulKinds }}
- --stateful-kind={{ . }}
{{- end }}
{{- if kindIs "string" .restrictedPorts }}
- {{ printf "--restricted-ports=%s" .restrictedPorts | quote }}
{{- end }}
{{- if kindIs "string" .protectedPorts }}
- {{ printf "--protected-ports=%s" .protectedPorts | quote }}
{{- end }}
{{- if kindIs "string" .nodePortRange }}
- {{ printf "--node-port-range=%s" .nodePortRange | quote }}
{{- end }}
{{- with .allowedNamespaces }}
- --allowed-namespaces={{ join "," . }}
{{- end }}
{{- with .allowedNamespaceSelector }}
- {{ printf "--allowed-namespace-selector=%s" . | quote }}
{{- end }}
{{- end }}
{{- if ne .Values.log.level "info" }}
- {{ printf "--log-level=%s" .Values.log.level | quote }}
{{- end }}
- --log-format={{ .Values.log.format }}
{{- end -}}

{{- /* A map of flags as arguments; a list becomes a repeated flag, true a bare one, false none. */ -}}
{{- define "pinhole.flags" -}}
{{- range $flag, $value := . }}
{{- if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%v" $flag . | quote }}
{{- end }}
{{- else if kindIs "bool" $value }}
{{- if $value }}
- --{{ $flag }}
{{- end }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%d" $flag (int64 $value) | quote }}
{{- else }}
- {{ printf "--%s=%v" $flag $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The mounted Secret of the modes that serve from files. */ -}}
{{- define "pinhole.tlsSecret" -}}
{{- if eq .Values.certificates.mode "cert-manager" -}}
{{ include "pinhole.webhook" . }}-tls
{{- else -}}
{{ .Values.certificates.files.secretName }}
{{- end -}}
{{- end -}}

{{- /* What an API server needs to call one path: (dict "root" . "path" "/mutate"). */ -}}
{{- define "pinhole.clientConfig" -}}
service:
  namespace: {{ .root.Release.Namespace }}
  name: {{ include "pinhole.webhook" .root }}
  path: {{ .path }}
  port: {{ .root.Values.webhook.service.port }}
{{- with .root.Values.certificates }}
{{- if and (eq .mode "files") .files.caBundle }}
caBundle: {{ b64enc .files.caBundle }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Where the caBundle comes from, for the head of both configurations. */ -}}
{{- define "pinhole.trust" -}}
{{- if eq .Values.certificates.mode "self" -}}
# The webhook writes its certificate authority into each `clientConfig.caBundle` and keeps it there.
{{- else if eq .Values.certificates.mode "cert-manager" -}}
# cert-manager's injector writes the certificate authority into each `clientConfig.caBundle`.
{{- else if .Values.certificates.files.caBundle -}}
# The API server trusts the webhook's certificate by the `caBundle` of each webhook.
{{- else -}}
# Before this can work, the API server must trust the webhook's certificate. Put the certificate of its authority into
# each `clientConfig.caBundle`, here and in the other webhook configuration:
#
#   bundle=$(base64 -w0 ca.crt)
#   kubectl patch mutatingwebhookconfiguration {{ include "pinhole.fullname" . }} --type=json \
#     -p '[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"'"$bundle"'"}]'
#   kubectl patch validatingwebhookconfiguration {{ include "pinhole.fullname" . }} --type=json \
#     -p '[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"'"$bundle"'"},
#          {"op":"add","path":"/webhooks/1/clientConfig/caBundle","value":"'"$bundle"'"}]'
{{- end -}}
{{- end -}}

{{- define "pinhole.configurationAnnotations" -}}
{{- $own := dict -}}
{{- if eq .Values.certificates.mode "cert-manager" -}}
{{- $own = dict "cert-manager.io/inject-ca-from" (printf "%s/%s" .Release.Namespace (include "pinhole.webhook" .)) -}}
{{- end -}}
{{- include "pinhole.annotations" (dict "root" . "own" $own) -}}
{{- end -}}

{{- define "pinhole.namespaceSelector" -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: [{{ append .Values.excludedNamespaces .Release.Namespace | uniq | join ", " }}]
{{- end -}}

{{- /* Whether an annotation key, `key`, is one that the webhook should hear of. */ -}}
{{- define "pinhole.isOurKey" -}}
key.startsWith('pinhole.dev/') || key in [
{{ include "pinhole.celList" (dict "keys" (include "pinhole.foreignKeys" . | fromYamlArray) "indent" 0) }}]
{{- end -}}

{{- /* Every annotation key of which a change is judged, as a CEL list. */ -}}
{{- define "pinhole.requestKeys" -}}
{{- $keys := concat (list "pinhole.dev/nat" "pinhole.dev/expose" "pinhole.dev/handover" "pinhole.dev/udp-handover" "pinhole.dev/sharing" "pinhole.dev/suspended") (include "pinhole.foreignKeys" .root | fromYamlArray) .more -}}
[{{ include "pinhole.celList" (dict "keys" $keys "indent" 0) }}]
{{- end -}}

{{- /* The node of the pod that a token is of, as a CEL list. */ -}}
{{- define "pinhole.ownNode" -}}
has(request.userInfo.extra) && 'authentication.kubernetes.io/node-name' in request.userInfo.extra ? request.userInfo.extra['authentication.kubernetes.io/node-name'] : []
{{- end -}}
