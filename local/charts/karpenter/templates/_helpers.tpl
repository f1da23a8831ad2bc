{{/* Names are at most 63 characters, since they become values of labels. */}}
{{- define "karpenter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "karpenter.fullname" -}}
{{- $name := include "karpenter.name" . }}
{{- $full := .Release.Name }}
{{- if .Values.fullnameOverride }}
{{- $full = .Values.fullnameOverride }}
{{- else if not (contains $name .Release.Name) }}
{{- $full = printf "%s-%s" .Release.Name $name }}
{{- end }}
{{- $full | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "karpenter.serviceAccount" -}}
{{- $fallback := "default" }}
{{- if .Values.serviceAccount.create }}{{ $fallback = include "karpenter.fullname" . }}{{ end }}
{{- default $fallback .Values.serviceAccount.name }}
{{- end }}

{{- define "karpenter.container" -}}
{{- .Values.controller.containerName | default "controller" }}
{{- end }}

{{- define "karpenter.image" -}}
{{- with .Values.controller.image }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- if .digest }}{{ print "@" .digest }}{{ end }}
{{- end }}
{{- end }}

{{/* What finds the controller's pods. */}}
{{- define "karpenter.selector" -}}
app.kubernetes.io/name: {{ include "karpenter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "karpenter.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "karpenter.selector" . }}
{{- if .Chart.AppVersion }}
app.kubernetes.io/version: {{ quote .Chart.AppVersion }}
{{- end }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.additionalLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The labels and annotations under `metadata:` of an object without annotations of its own. */}}
{{- define "karpenter.metadata" -}}
labels:
  {{- include "karpenter.labels" . | nindent 2 }}
{{- with .Values.additionalAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "karpenter.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ template "karpenter.serviceAccount" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "karpenter.budgetVersion" -}}
{{- if and (.Capabilities.APIVersions.Has "policy/v1") (semverCompare ">= 1.21-0" .Capabilities.KubeVersion.Version) }}
{{- print "policy/v1" }}
{{- else }}
{{- print "policy/v1beta1" }}
{{- end }}
{{- end }}

{{/*
The three that follow write the pods' labels into whatever spreads or separates the pods and has no selector yet. They
change the values in place: a map is handed on by reference, and whoever holds it sees the change.
*/}}
{{- define "karpenter.select" -}}
{{- if not (hasKey .term "labelSelector") }}
{{- $labels := include "karpenter.selector" . | fromYaml }}
{{- $_ := set .term "labelSelector" (dict "matchLabels" $labels) }}
{{- end }}
{{- end }}

{{- define "karpenter.selectInTerms" -}}
{{- with .group.requiredDuringSchedulingIgnoredDuringExecution }}
{{- range $term := . }}
{{- include "karpenter.select" (merge (dict "term" $term) $) }}
{{- end }}
{{- end }}
{{- with .group.preferredDuringSchedulingIgnoredDuringExecution }}
{{- range $weighted := . }}
{{- include "karpenter.select" (merge (dict "term" $weighted.podAffinityTerm) $) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "karpenter.selectInAffinity" -}}
{{- if hasKey .Values.affinity "podAffinity" }}
{{- include "karpenter.selectInTerms" (merge (dict "group" .Values.affinity.podAffinity) .) }}
{{- end }}
{{- if hasKey .Values.affinity "podAntiAffinity" }}
{{- include "karpenter.selectInTerms" (merge (dict "group" .Values.affinity.podAntiAffinity) .) }}
{{- end }}
{{- end }}

{{- define "karpenter.selectInSpread" -}}
{{- range $constraint := .Values.topologySpreadConstraints }}
{{- include "karpenter.select" (merge (dict "term" $constraint) $) }}
{{- end }}
{{- end }}
