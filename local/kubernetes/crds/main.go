// Writes the custom resource definitions that Karpenter's modules export, one file each, into a folder.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	aws "github.com/aws/karpenter-provider-aws/pkg/apis"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	core "sigs.k8s.io/karpenter/pkg/apis"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: crds folder")
		os.Exit(2)
	}
	definitions := map[string]*apiextensions.CustomResourceDefinition{}
	for _, definition := range append(core.CRDs, aws.CRDs...) {
		definitions[definition.Name] = definition
	}
	for name, definition := range definitions {
		text, err := yaml.Marshal(definition)
		if err == nil {
			err = os.WriteFile(filepath.Join(os.Args[1], name+".yaml"), text, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
