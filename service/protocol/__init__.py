"""What the service answers, resource by resource: these classes are also what /openapi.json says."""
