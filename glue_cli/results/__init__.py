"""The records that the commands write and read: results, histories, and the settings that they come from."""
