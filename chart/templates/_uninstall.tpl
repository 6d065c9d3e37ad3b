{{- define "pinhole.uninstall" -}}{{ include "pinhole.fullname" . }}-uninstall{{- end -}}
{{- define "pinhole.cleanup" -}}{{ include "pinhole.fullname" . }}-cleanup{{- end -}}
{{- define "pinhole.claimsOff" -}}{{ include "pinhole.fullname" . }}-claims-off{{- end -}}

{{- /* Makes an object part of the removal, or of another hook. Helm prints the Job's log, which names what was not reached. */ -}}
{{- define "pinhole.uninstallAnnotations" -}}
{{- $own := dict -}}
{{- if not .root.Values.plainManifests -}}
{{- $own = dict "helm.sh/hook" (default "pre-delete" .hook) "helm.sh/hook-weight" .weight "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" -}}
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
{{- end }}
# Claims may have been on before.
- group: coordination.k8s.io
  resource: leases
  target: leases.v1.coordination.k8s.io
  names: [{{ include "pinhole.controller" . }}]
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

{{- /* The kinds of ours of which nothing is left: what Pinhole wrote, and what means nothing without it. Also where claims are off,
for they may have been on. */ -}}
{{- define "pinhole.kindsMadeAtRunTime" -}}
- portclaims
- natnodes
{{- end -}}

{{- /* Of Pinholes, those that the controller wrote. */ -}}
{{- define "pinhole.pinholesOfPods" -}}
pinholes.v1alpha1.pinhole.dev?app.kubernetes.io/managed-by=pinhole-controller
{{- end -}}

{{- /* The kinds of ours whose objects somebody else wrote. */ -}}
{{- define "pinhole.kindsOfUsers" -}}
- natpools
- pinholes
{{- end -}}

{{- /* The rights to end what only a controller would end. */ -}}
{{- define "pinhole.endOfClaimsRules" -}}
# What somebody wrote stays, but nobody is left to take our finalizers off.
- apiGroups: [pinhole.dev]
  resources: [{{ include "pinhole.kindsOfUsers" . | fromYamlArray | join ", " }}]
  verbs: [list, patch]
# By this the policy of Pinholes tells who may take theirs off.
- apiGroups: [pinhole.dev]
  resources: [pinholes/finalizers]
  verbs: [update]
# Nobody is left to find ports for pods that wait at our scheduling gate.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
{{- end -}}

{{- /* How the pods run that take something out of the cluster. */ -}}
{{- define "pinhole.uninstallPod" -}}
serviceAccountName: {{ .name }}
restartPolicy: Never
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.webhook.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .root.Values.webhook.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- with .root.Values.webhook.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.webhook.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- /* What their container is, beside its arguments and files. */ -}}
{{- define "pinhole.uninstallContainer" -}}
image: {{ include "pinhole.image" (dict "root" . "own" .Values.webhook.image) }}
imagePullPolicy: {{ include "pinhole.pullPolicy" (dict "root" . "own" .Values.webhook.image) }}
{{- with .Values.webhook.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
# On failure the last lines of the log become the pod's own message.
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml .Values.uninstall.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
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
