"""Mixed precision: what each layer costs and spoils in each precision, and the cheapest plan."""
