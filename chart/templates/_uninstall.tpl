{{- define "pinhole.uninstall" -}}{{ include "pinhole.fullname" . }}-uninstall{{- end -}}
{{- define "pinhole.cleanup" -}}{{ include "pinhole.fullname" . }}-cleanup{{- end -}}

{{- /* Makes an object part of the removal. Helm prints the Job's log, which names the nodes that were not reached. */ -}}
{{- define "pinhole.uninstallAnnotations" -}}
{{- $own := dict -}}
{{- if not .root.Values.plainManifests -}}
{{- $own = dict "helm.sh/hook" "pre-delete" "helm.sh/hook-weight" .weight "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" -}}
{{- if eq .weight "0" -}}
{{- $own = set $own "helm.sh/hook-output-log-policy" "hook-succeeded,hook-failed" -}}
{{- end -}}
{{- end -}}
{{- include "pinhole.annotations" (dict "root" .root "own" $own) -}}
{{- end -}}

{{- /* What is not Helm's to delete, in the order in which it must go: what would make it again goes first. */ -}}
{{- define "pinhole.madeAtRunTime" -}}
{{- $webhook := include "pinhole.webhook" . -}}
{{- if (default dict .Values.claims).enabled }}
- group: apps
  resource: deployments
  target: deployments.v1.apps
  names: [{{ include "pinhole.controller" . }}]
- group: coordination.k8s.io
  resource: leases
  target: leases.v1.coordination.k8s.io
  names: [{{ include "pinhole.controller" . }}]
{{- end }}
{{- if eq .Values.certificates.mode "self" }}
- group: ""
  resource: secrets
  target: secrets
  names: [{{ $webhook }}-ca]
{{- else if eq .Values.certificates.mode "cert-manager" }}
{{- $chain := not .Values.certificates.certManager.issuerRef }}
- group: cert-manager.io
  resource: certificates
  target: certificates.v1.cert-manager.io
  names: [{{ $webhook }}{{ if $chain }}, {{ $webhook }}-ca{{ end }}]
- group: ""
  resource: secrets
  target: secrets
  names: [{{ include "pinhole.tlsSecret" . }}{{ if $chain }}, {{ $webhook }}-ca{{ end }}]
{{- end }}
{{- end -}}

{{- /* The kinds of ours of which nothing is left: what Pinhole wrote, and what means nothing without it. */ -}}
{{- define "pinhole.kindsMadeAtRunTime" -}}
{{- if (default dict .Values.claims).enabled }}
- portclaims
- natnodes
{{- end }}
{{- end -}}

{{- /* Of Pinholes, those that the controller wrote. */ -}}
{{- define "pinhole.pinholesOfPods" -}}
{{- if (default dict .Values.claims).enabled }}pinholes.v1alpha1.pinhole.dev?app.kubernetes.io/managed-by=pinhole-controller{{ end -}}
{{- end -}}

{{- /* The kinds of ours whose objects somebody else wrote. */ -}}
{{- define "pinhole.kindsOfUsers" -}}
{{- if (default dict .Values.claims).enabled }}
- natpools
- pinholes
{{- end }}
{{- end -}}

{{- define "pinhole.cleanupDaemonSet" -}}
{{- $labels := dict "root" . "component" "cleanup" -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ include "pinhole.cleanup" . }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "pinhole.labels" $labels | nindent 4 }}
  {{- include "pinhole.annotations" (dict "root" .) }}
spec:
  selector:
    matchLabels:
      {{- include "pinhole.selectorLabels" $labels | nindent 6 }}
  updateStrategy:
    rollingUpdate:
      maxUnavailable: 100%
  template:
    metadata:
      labels:
        {{- include "pinhole.selectorLabels" $labels | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      {{- with .Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.agent.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      hostNetwork: true
      terminationGracePeriodSeconds: 5
      {{- with .Values.uninstall.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      tolerations:
        - operator: Exists
      affinity:
        # Never beside an agent, which would program again what is removed here.
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector:
                matchLabels:
                  {{- include "pinhole.selectorLabels" (dict "root" . "component" "agent") | nindent 18 }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
      initContainers:
        - name: cleanup
          {{- include "pinhole.cleanupContainer" . | nindent 10 }}
          args: [cleanup{{ include "pinhole.prefixArgument" . }}]
      containers:
        # The pods of a DaemonSet must not end.
        - name: clean
          {{- include "pinhole.cleanupContainer" . | nindent 10 }}
          args: [cleanup{{ include "pinhole.prefixArgument" . }}, --stay]
      volumes:
        - name: xtables-lock
          hostPath:
            path: /run/xtables.lock
            type: FileOrCreate
{{- end -}}

{{- define "pinhole.prefixArgument" -}}
{{- with index .Values.agent.flags "resource-prefix" }}, {{ printf "--resource-prefix=%s" . }}{{ end -}}
{{- end -}}

{{- define "pinhole.cleanupContainer" -}}
image: {{ include "pinhole.image" (dict "root" . "own" .Values.agent.image) }}
imagePullPolicy: {{ include "pinhole.pullPolicy" (dict "root" . "own" .Values.agent.image) }}
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml .Values.agent.resources | nindent 2 }}
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN, NET_RAW]
volumeMounts:
  - name: xtables-lock
    mountPath: /run/xtables.lock
{{- end -}}
