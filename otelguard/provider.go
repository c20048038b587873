package otelguard

import (
	"net"
	"strconv"
	"strings"
)

// hosts maps suffixes of host names to the names of their providers in the conventions.
var hosts = []struct{ suffix, provider string }{
	{"api.openai.com", "openai"},
	{".openai.azure.com", "azure.ai.openai"},
	{".services.ai.azure.com", "azure.ai.inference"},
	{".models.ai.azure.com", "azure.ai.inference"},
	{"api.anthropic.com", "anthropic"},
	{"generativelanguage.googleapis.com", "gcp.gemini"},
	{"aiplatform.googleapis.com", "gcp.vertex_ai"},
	{".amazonaws.com", "aws.bedrock"},
	{"api.cohere.com", "cohere"},
	{"api.deepseek.com", "deepseek"},
	{"api.groq.com", "groq"},
	{"api.mistral.ai", "mistral_ai"},
	{"api.moonshot.ai", "moonshot_ai"},
	{"api.moonshot.cn", "moonshot_ai"},
	{"api.perplexity.ai", "perplexity"},
	{"api.x.ai", "x_ai"},
	{".ml.cloud.ibm.com", "ibm.watsonx.ai"},
}

// formats maps API endpoints to the provider whose API they use. It serves hosts that are not in hosts. All other endpoints
// use OpenAI's API.
var formats = map[string]string{
	"messages": "anthropic", "generateContent": "gcp.gen_ai", "embedContent": "gcp.gen_ai",
	"converse": "aws.bedrock", "invoke": "aws.bedrock",
}

// providerOf returns the name of a call's provider, by its host or by its API.
func providerOf(address, endpoint string) string {
	for _, h := range hosts {
		if address == h.suffix || strings.HasSuffix(address, h.suffix) && (h.suffix[0] == '.' || strings.HasSuffix(address, "."+h.suffix) ||
			strings.HasSuffix(address, "-"+h.suffix)) {
			return h.provider
		}
	}
	if name := formats[endpoint]; name != "" {
		return name
	}
	return "openai"
}

// splitHost splits a URL's host. Without a port it returns the port of https.
func splitHost(host string) (address string, port int) {
	if name, number, err := net.SplitHostPort(host); err == nil {
		if port, err = strconv.Atoi(number); err == nil {
			return name, port
		}
	}
	return host, 443
}
